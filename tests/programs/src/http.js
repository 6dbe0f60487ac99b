// An HTTP server and client on Node's own network code: "serve PORT DIRECTORY" or "get URL".
const fs = require("node:fs");
const http = require("node:http");
const path = require("node:path");

function fail(error) {
  console.error(error.message);
  process.exitCode = 1;
}

function serve(port, directory) {
  const server = http.createServer((request, response) => {
    const body = fs.createReadStream(path.join(directory, path.normalize(request.url)));
    body.on("error", () => response.writeHead(404).end());
    body.pipe(response);
  });
  server.listen(Number(port));
  process.on("SIGTERM", () => process.exit(0));
}

function get(url) {
  const request = http.get(url, (response) => {
    if (response.statusCode !== 200) fail(new Error(`${url}: ${response.statusCode}`));
    response.pipe(process.stdout);
  });
  request.on("error", fail);
}

const [command, ...words] = process.argv.slice(2);
({ serve, get })[command](...words);
