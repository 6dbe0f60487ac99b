<?php
// get URL TIMES AT_ONCE SHA256: with the socket functions of PHP, at once by waiting for several streams.
[, $url, $times, $at_once, $sha256] = $argv;
['host' => $host, 'path' => $path] = parse_url($url);
$left = (int)$times;
$streams = $texts = [];
while ($left > 0 || $streams) {
    while ($left > 0 && count($streams) < $at_once) {
        $stream = stream_socket_client("tcp://$host:80", $number, $told, 30);
        if (!$stream) { fwrite(STDERR, "$told\n"); exit(1); }
        fwrite($stream, "GET $path HTTP/1.0\r\nHost: $host\r\nConnection: close\r\n\r\n");
        stream_set_blocking($stream, false);
        $streams[(int)$stream] = $stream;
        $texts[(int)$stream] = '';
        $left--;
    }
    $read = array_values($streams); $write = $except = null;
    stream_select($read, $write, $except, 60) or exit(2);
    foreach ($read as $stream) {
        $texts[(int)$stream] .= fread($stream, 65536);
        if (feof($stream)) {
            $body = explode("\r\n\r\n", $texts[(int)$stream], 2)[1];
            if (hash('sha256', $body) !== $sha256) { fwrite(STDERR, "another digest\n"); exit(1); }
            unset($streams[(int)$stream]);
            fclose($stream);
        }
    }
}
