// Package tpm authenticates first certificates by TPM 2.0 attestation: the device proves that the private key of its
// request is in a TPM with a known endorsement key, and cannot leave it.
//
// The proof needs two round trips. First the device sends the public areas of its endorsement key (EK) and of an
// attestation key (AK). The server encrypts a random secret so that only a TPM that holds both can decrypt it
// (TPM2_MakeCredential; TPM 2.0 Library, Part 1, section 24). Then the device sends the decrypted secret, and a
// statement about the key to certify that the AK has signed (TPM2_Certify; Part 3, section 18.2). The statement
// contains a nonce and the trust domain, so that it serves for no other CA.
//
// A claim says which TPM it is, not that the TPM is genuine: software can imitate one. A rule of the policy therefore
// names the endorsement key (fact tpm.ek), or requires that its certificate was verified (tpm.certified, tpm.source).
// No manufacturer is trusted by default.
//
// The package refuses:
//
//   - messages, keys and certificates over their maximum size
//   - an EK that is not a restricted decryption key of the TPM, or not RSA-2048 to RSA-4096, P-256 or P-384
//   - an AK that is not a restricted signing key of the TPM, and hashes other than SHA-256, SHA-384 and SHA-512
//   - an EK certificate for another key, of a CA, for another use, or with a critical extension that is not understood
//     (RFC 5280 section 4.2; TCG EK Credential Profile 2.5)
//   - an EK certificate of an imported manufacturer that is expired or not yet valid
//   - a secret that another TPM decrypted, and a challenge that was made for another key or request
//   - a challenge that was made before the trust sources changed
//   - a statement that no TPM generated, that is not from TPM2_Certify, or that is about another key or challenge
//   - a key that can be exported, was not generated in the TPM, or cannot sign
package tpm
