// Package x5c authenticates first certificates by factory certificates: the IDevID certificates of IEEE 802.1AR, which
// a manufacturer gives to a device together with a private key.
//
// An operator configures a trust source (see [Source]) for each product line: the manufacturer's CA certificates, and
// what else the manufacturer's certificates must satisfy. The device sends its certificate with the CA certificates
// between it and the root. It proves possession of the key with a signature over [pki.X5CStatement], which contains the
// trust domain, the key to certify, the request ID and a challenge of package nonce. A signature therefore serves for one
// request only, and for no other CA.
//
// A device can also authenticate to a TLS server with its factory certificate, as clients of EST do (RFC 7030 §3.3.2).
// Then the TLS handshake proves possession of the key, and a [TLSAuthenticator] verifies the certificates.
//
// Both authenticators refuse:
//
//   - more than 8 certificates, certificates over 8 KiB and RSA keys over 4096 bits, before it verifies any signature
//   - chains that do not lead to a source, are longer than the source allows, or are not in order (RFC 5280 §6.1)
//   - certificates outside of their validity period. The period of an IDevID may be unlimited: a notAfter of
//     99991231235959Z (RFC 5280 §4.1.2.5) is far in the future
//   - critical extensions that it does not understand. A critical subject alternative name may contain a
//     HardwareModuleName (RFC 4108 §5) or a PermanentIdentifier (RFC 4043), which IDevIDs use for serial numbers
//   - certificates of CAs, or for other uses than signatures and TLS clients, as certificates of devices
//   - certificates that the manufacturer's CRL lists (RFC 5280 §6.3.3)
//
// If a source requires CRLs and has no current one, the result is a temporary error.
//
// A device is identified by the issuer and the serial number of its certificate (see [SubjectOf]). The facts are what
// the certificate says. Two manufacturers can use the same serial numbers, so a rule should always name x5c.source.
package x5c
