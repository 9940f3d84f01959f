// Package ceremony makes the certificates at the top of a PKI. These are a self-signed root, the request of an issuing
// CA, the certificate that the root signs for it, and the cross-certificate that a root signs for another root. The
// package also makes the root's CRL. The key is a [crypto.Signer] given by the caller. The functions read and write
// only their arguments, so that a ceremony can be spread over machines that exchange files. A [Transcript] describes on
// paper what was made.
//
// Certificates, requests and CRLs follow RFC 5280, RFC 2986 and RFC 5480. Subjects are not empty, basic constraints
// have a path length, key usages allow only signing certificates and CRLs, and serial numbers have 20 bytes. Only on
// request, a critical name constraint restricts an issuing CA to its trust domain (RFC 5280 section 4.2.1.10), because
// some verifiers cannot read it.
//
// The package refuses weak keys, and requests without proof of possession. It refuses a CA generation with the name or
// key of another one, and a path length that the parent does not allow. No certificate may outlive its parent. It
// refuses a CRL that would omit a revocation or reuse a number. Refusals are [*pki.Refusal]; other errors come from the
// signer.
package ceremony
