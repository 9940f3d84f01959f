// Package tpm keeps a device's private keys in its TPM 2.0, and proves to a server that they are there.
//
// A [Device] is the TPM. It makes a [Key], which is a [crypto.Signer], and responds to the challenges of a server with
// the messages of package attest. The TPM is opened for each operation and closed afterwards, so that other programs
// can use it in between, and keys continue to work after the TPM or its driver was reset.
//
// A Key is a P-256 key below the storage primary key of the owner hierarchy. Its private part is encrypted by the TPM
// and works only there. The package stores it in the TSS2 format (draft-bottomley-tpm2-keys), which the provider
// tpm2-openssl of OpenSSL reads. The endorsement key is made from the templates of TCG EK Credential Profile 2.5, annex B, and the
// attestation key from a fixed template, so that neither of them has to be stored.
//
// The package refuses key files with a password, a policy or another parent. It changes nothing in the TPM: it defines
// no index, and makes no object persistent.
package tpm
