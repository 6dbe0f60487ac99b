import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.net.SocketAddress;
import java.net.SocketTimeoutException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.ByteBuffer;
import java.nio.channels.DatagramChannel;
import java.nio.channels.SelectionKey;
import java.nio.channels.Selector;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.util.Arrays;
import java.util.HexFormat;
import java.util.Iterator;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;

/**
 * serve FILE PORT | serve-nio FILE PORT | serve-datagrams FILE PORT, and with TIMES AT_ONCE SHA256 after it: get URL |
 * nio HOST:PORT | datagrams HOST:PORT.
 */
class Web {
    public static void main(String[] args) throws Exception {
        switch (args[0]) {
            case "serve" -> serve(Files.readAllBytes(Path.of(args[1])), Integer.parseInt(args[2]));
            case "serve-nio" -> serveNio(Files.readAllBytes(Path.of(args[1])), Integer.parseInt(args[2]));
            case "serve-datagrams" -> serveDatagrams(Files.readAllBytes(Path.of(args[1])), Integer.parseInt(args[2]));
            default -> many(args);
        }
    }

    static void serve(byte[] data, int port) throws Exception {
        HttpServer server = HttpServer.create(new InetSocketAddress(port), 0);
        server.createContext("/", exchange -> {
            exchange.sendResponseHeaders(200, data.length);
            exchange.getResponseBody().write(data);
            exchange.close();
        });
        server.setExecutor(Executors.newFixedThreadPool(8));
        server.start();
    }

    /** One thread, one selector: sends the data to everybody who has sent something. */
    static void serveNio(byte[] data, int port) throws Exception {
        Selector selector = Selector.open();
        ServerSocketChannel listener = ServerSocketChannel.open();
        listener.bind(new InetSocketAddress(port)).configureBlocking(false);
        listener.register(selector, SelectionKey.OP_ACCEPT);
        while (true) {
            selector.select();
            for (Iterator<SelectionKey> keys = selector.selectedKeys().iterator(); keys.hasNext(); keys.remove()) {
                SelectionKey key = keys.next();
                if (key.isAcceptable()) {
                    SocketChannel channel = listener.accept();
                    if (channel != null) {
                        channel.configureBlocking(false);
                        channel.register(selector, SelectionKey.OP_READ, ByteBuffer.wrap(data));
                    }
                } else if (key.isReadable()) {
                    ((SocketChannel) key.channel()).read(ByteBuffer.allocate(1024));
                    key.interestOps(SelectionKey.OP_WRITE);
                } else {
                    ByteBuffer rest = (ByteBuffer) key.attachment();
                    ((SocketChannel) key.channel()).write(rest);
                    if (!rest.hasRemaining()) {
                        key.channel().close();
                    }
                }
            }
        }
    }

    /** A datagram asks for the piece of its number; an empty piece is the end. No side repeats anything. */
    static final int PIECE = 16384;

    static void serveDatagrams(byte[] data, int port) throws Exception {
        DatagramChannel channel = DatagramChannel.open().bind(new InetSocketAddress(port));
        ByteBuffer message = ByteBuffer.allocate(4 + PIECE);
        while (true) {
            SocketAddress from = channel.receive(message.clear().limit(4));
            int at = message.getInt(0) * PIECE;
            message.limit(4 + Math.max(0, Math.min(PIECE, data.length - at)));
            message.put(data, Math.min(at, data.length), message.remaining()).flip();
            channel.send(message, from);
        }
    }

    /** Registered with a selector; connected, so that it hears the server alone. */
    static byte[] datagrams(String where) throws Exception {
        String[] parts = where.split(":");
        ByteBuffer data = ByteBuffer.allocate(4 << 20);
        ByteBuffer message = ByteBuffer.allocate(4 + PIECE);
        try (Selector selector = Selector.open(); DatagramChannel channel = DatagramChannel.open()) {
            channel.configureBlocking(false);
            channel.register(selector, SelectionKey.OP_READ);
            channel.connect(new InetSocketAddress(parts[0], Integer.parseInt(parts[1])));
            for (int number = 0;; number++) {
                channel.write(message.clear().putInt(number).flip());
                if (selector.select(30_000) == 0) {
                    throw new SocketTimeoutException("nothing came for piece " + number);
                }
                selector.selectedKeys().clear();
                channel.read(message.clear());
                if (message.flip().getInt() != number) {
                    throw new IllegalStateException("another piece");
                }
                if (!message.hasRemaining()) {
                    return Arrays.copyOf(data.array(), data.position());
                }
                data.put(message);
            }
        }
    }

    static void many(String[] args) throws Exception {
        ExecutorService pool = Executors.newFixedThreadPool(Integer.parseInt(args[3]));
        Callable<byte[]> once = switch (args[0]) {
            case "get" -> () -> get(args[1]);
            case "nio" -> () -> nio(args[1]);
            default -> () -> datagrams(args[1]);
        };
        Callable<Void> checked = () -> {
            byte[] sum = MessageDigest.getInstance("SHA-256").digest(once.call());
            if (!HexFormat.of().formatHex(sum).equals(args[4])) {
                throw new IllegalStateException("another digest");
            }
            return null;
        };
        try {
            for (Future<Void> each : pool.invokeAll(java.util.Collections.nCopies(Integer.parseInt(args[2]), checked))) {
                each.get();
            }
            System.exit(0);
        } catch (Exception error) {
            System.err.println(error);
            System.exit(1);
        }
    }

    /** A client for each, so that it connects anew. */
    static byte[] get(String url) throws Exception {
        HttpClient client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
        HttpRequest request = HttpRequest.newBuilder(URI.create(url)).build();
        return client.send(request, HttpResponse.BodyHandlers.ofByteArray()).body();
    }

    /** Registered with a selector before it is connected. */
    static byte[] nio(String where) throws Exception {
        String[] parts = where.split(":");
        ByteBuffer data = ByteBuffer.allocate(4 << 20);
        try (Selector selector = Selector.open(); SocketChannel channel = SocketChannel.open()) {
            channel.configureBlocking(false);
            channel.register(selector, SelectionKey.OP_CONNECT);
            channel.connect(new InetSocketAddress(parts[0], Integer.parseInt(parts[1])));
            while (true) {
                selector.select();
                SelectionKey key = selector.selectedKeys().iterator().next();
                selector.selectedKeys().clear();
                if (key.isConnectable() && channel.finishConnect()) {
                    channel.write(ByteBuffer.wrap("send it".getBytes()));
                    key.interestOps(SelectionKey.OP_READ);
                } else if (key.isReadable() && channel.read(data) < 0) {
                    byte[] all = new byte[data.position()];
                    data.flip().get(all);
                    return all;
                }
            }
        }
    }
}
