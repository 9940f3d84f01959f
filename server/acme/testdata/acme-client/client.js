// A client of ACME with the npm package acme-client. Its arguments are the URL of the directory, a directory for its
// files, the port for http-01, the host, and an operation: "get", or "revoke". The environment contains the external key
// in EAB_KID and EAB_HMAC_KEY.
'use strict';

const acme = require('acme-client');
const fs = require('fs');
const http = require('http');
const path = require('path');

const [directoryUrl, files, port, host, operation] = process.argv.slice(2);
const file = (name) => path.join(files, name);
const read = (name) => (fs.existsSync(file(name)) ? fs.readFileSync(file(name)) : undefined);

async function main() {
    let accountKey = read('account.key');
    if (!accountKey) {
        accountKey = await acme.crypto.createPrivateEcdsaKey();
        fs.writeFileSync(file('account.key'), accountKey, { mode: 0o600 });
    }
    const client = new acme.Client({
        directoryUrl,
        accountKey,
        accountUrl: read('account.url')?.toString(),
        externalAccountBinding: { kid: process.env.EAB_KID, hmacKey: process.env.EAB_HMAC_KEY },
    });
    if (operation === 'revoke') {
        await client.revokeCertificate(read('host.pem'), { reason: 4 });
        return;
    }
    const [key, csr] = await acme.crypto.createCsr({ altNames: [host] }, await acme.crypto.createPrivateEcdsaKey());
    const responses = new Map();
    const server = http.createServer((request, response) => response.end(responses.get(request.url)));
    await new Promise((resolve) => { server.listen(Number(port), '127.0.0.1', resolve); });
    try {
        const certificate = await client.auto({
            csr,
            email: 'admin@fleet.example',
            termsOfServiceAgreed: true,
            skipChallengeVerification: true, // only the server's resolver knows the host
            challengeCreateFn: async (authorization, challenge, keyAuthorization) => {
                responses.set(`/.well-known/acme-challenge/${challenge.token}`, keyAuthorization);
            },
            challengeRemoveFn: async () => responses.clear(),
        });
        fs.writeFileSync(file('host.key'), key, { mode: 0o600 });
        fs.writeFileSync(file('host.pem'), certificate);
    }
    finally {
        server.close();
        try {
            fs.writeFileSync(file('account.url'), client.getAccountUrl());
        }
        catch { /* there is no account yet */ }
    }
}

main().catch((error) => {
    console.error(error);
    process.exit(1);
});
