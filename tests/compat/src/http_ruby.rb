# serve FILE PORT | get URL TIMES AT_ONCE SHA256
require "digest"
require "net/http"
require "socket"

what, *rest = ARGV
if what == "serve"
  data = File.binread(rest[0])
  trap("TERM") { exit!(0) }
  server = TCPServer.new(rest[1].to_i)
  loop do
    Thread.new(server.accept) do |client|
      nil until client.gets.to_s.strip.empty?
      client.write("HTTP/1.1 200 OK\r\nContent-Length: #{data.bytesize}\r\nConnection: close\r\n\r\n", data)
      client.close
    end
  end
else
  url, times, at_once, sha256 = rest
  jobs = Queue.new
  times.to_i.times { |i| jobs << i }
  jobs.close
  Thread.report_on_exception = false
  threads = Array.new(at_once.to_i) do
    Thread.new do
      while jobs.pop
        raise "another digest" unless Digest::SHA256.hexdigest(Net::HTTP.get(URI(url))) == sha256
      end
    end
  end
  threads.each(&:join)
end
