package pki

import "errors"

// X5CTLSEvidence is evidence of the kind [EvidenceX5CTLS]: the certificate that the manufacturer gave to a device (an
// IDevID of IEEE 802.1AR), with which the device authenticated to a TLS server. It contains no proof of possession: the
// server makes this evidence only from the certificates of the connection that the request came on, and only if the
// handshake of that connection verified a signature with the key of the first one.
type X5CTLSEvidence struct {
	// Certificates are in DER. The device's certificate is the first, and each further one certifies the one before it.
	Certificates [][]byte
}

// Encode encodes e as the value of [Evidence]: the certificates, each after its length in 4 bytes. There is one encoding
// for each value.
func (e X5CTLSEvidence) Encode() []byte {
	var b []byte
	for _, der := range e.Certificates {
		b = appendSized(b, der)
	}
	return b
}

// ParseX5CTLSEvidence parses the encoding of Encode. The result refers to the memory of b.
func ParseX5CTLSEvidence(b []byte) (X5CTLSEvidence, error) {
	all, ok := cutAll(b)
	if !ok {
		return X5CTLSEvidence{}, errors.New("the evidence ends within a certificate")
	}
	return X5CTLSEvidence{all}, nil
}
