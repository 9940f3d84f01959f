// Package attest contains the messages with which a device proves that its private key is in a TPM 2.0. The device
// sends a [Device], the server answers with a [Challenge], and the device sends a [Response] with its request for a
// certificate.
//
// Each message is a sequence of fields in a fixed order. A field is its length in 2 bytes, most significant byte first,
// and then its bytes, like the sized buffers of a TPM (TPM 2.0 Library, Part 2, section 10.4). The structures in the
// fields are encoded as a TPM encodes them, without a length of their own.
//
// The parsers refuse messages over [MaxMessage], fields over their maximum length, missing fields, and data after the
// last field. They do not look into the fields.
package attest
