// Package ca issues certificates. It contains the profiles, the issuing keys behind [crypto.Signer], and the issuance
// pipeline. The pipeline keeps two promises: no certificate is signed without a durable intent, and none is delivered
// without its durable record.
//
// The package does not decide which identity may have which certificate. A [Request] contains that decision, with the
// guards that must still hold when the certificate is recorded. The package refuses keys, names and lifetimes that the
// profile does not allow. No certificate outlives its issuing CA, and only the public key is taken from the client's
// request.
//
// Certificates follow RFC 5280, serial numbers its section 4.1.2.2, and key identifiers RFC 7093 section 2.
package ca
