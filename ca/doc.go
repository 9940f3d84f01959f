// Package ca issues certificates. It knows profiles, issuing keys behind crypto.Signer, and the pipeline that keeps
// two promises: no certificate is signed without a durable intent, and none is released without its durable record.
//
// It decides nothing about who may have a certificate: a Request says what was decided, and carries the guards that
// must still hold when the certificate is recorded. It refuses keys, names and lifetimes that the profile does not
// allow, never signs past the issuing CA's own end, and issues nothing a client wrote but a public key.
//
// Certificates follow RFC 5280; serial numbers §4.1.2.2, key identifiers RFC 7093 §2.
package ca
