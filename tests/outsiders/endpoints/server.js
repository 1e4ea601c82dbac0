// A cutoff endpoint in Node.js: `server.js PORT`.
require("http")
  .createServer((request, response) => response.writeHead(204).end())
  .listen(Number(process.argv[2]), "127.0.0.1");
