// deno.js CHAIN KEY ROOT PORT: calls a TLS server on this machine with a chain; Deno's TLS is rustls.
const [chain, key, root, port] = Deno.args;
const connection = await Deno.connectTls({
	hostname: "127.0.0.1", port: Number(port), caCerts: [Deno.readTextFileSync(root)],
	cert: Deno.readTextFileSync(chain), key: Deno.readTextFileSync(key),
});
const said = new Uint8Array(5);
await connection.read(said);
console.log(new TextDecoder().decode(said));
connection.close();
