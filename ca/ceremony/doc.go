// Package ceremony makes the certificates at the top of a PKI: a self-signed root, the request of an issuing CA, the
// certificate that the root signs for it, and the root's CRL. Where the key lies is the caller's business: all it
// takes is a crypto.Signer, and the functions read and write nothing but what they are given, so that a ceremony can
// be spread over machines that exchange files. A Transcript puts on paper what was made.
//
// What it makes follows RFC 5280, RFC 2986 and RFC 5480: names that are not empty, basic constraints with a path
// length, key usages for certificates and CRLs and nothing else, serial numbers of 20 octets. An issuing CA is held to
// its trust domain by a critical name constraint (RFC 5280 §4.2.1.10) only on request: some verifiers cannot read it.
//
// It refuses weak keys, a request without proof of possession, a CA generation that takes over the name or the key of
// another, a certificate that outlives its parent, a path length that the parent does not grant, and a CRL that would
// forget a revocation or reuse a number. Refusals are *pki.Refusal; other errors come from the signer.
package ceremony
