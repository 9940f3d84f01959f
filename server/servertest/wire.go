package servertest

import (
	"crypto/x509"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// Kind returns the protobuf value of a kind of identity, or a value that does not exist for any other name.
func Kind(name string) brevetv1.IdentityKind {
	for kind, is := range map[brevetv1.IdentityKind]string{
		brevetv1.IdentityKind_IDENTITY_KIND_UNSPECIFIED: "", brevetv1.IdentityKind_IDENTITY_KIND_DEVICE: "device",
		brevetv1.IdentityKind_IDENTITY_KIND_WORKLOAD: "workload", brevetv1.IdentityKind_IDENTITY_KIND_OPERATOR: "operator",
		brevetv1.IdentityKind_IDENTITY_KIND_SERVER: "server", brevetv1.IdentityKind_IDENTITY_KIND_VALIDATION_AUTHORITY: "va",
	} {
		if is == name {
			return kind
		}
	}
	return 99
}

// Reason returns the protobuf value of a revocation reason (RFC 5280 §5.3.1), or a value that does not exist for any
// other name.
func Reason(name string) brevetv1.RevocationReason {
	if name == "" {
		return brevetv1.RevocationReason_REVOCATION_REASON_UNSPECIFIED
	}
	reason, err := pki.ParseReason(name)
	if err != nil {
		return 99
	}
	return brevetv1.RevocationReason(reason)
}

// Names converts DNS names and IP addresses to protobuf.
func Names(dns, ips []string) []*brevetv1.Name {
	var all []*brevetv1.Name
	for _, n := range dns {
		all = append(all, &brevetv1.Name{Kind: &brevetv1.Name_Dns{Dns: n}})
	}
	for _, n := range ips {
		all = append(all, &brevetv1.Name{Kind: &brevetv1.Name_Ip{Ip: n}})
	}
	return all
}

// TokenEvidence returns the protobuf form of evidence that consists of a token's secret.
func TokenEvidence(secret []byte) []*brevetv1.Evidence {
	return []*brevetv1.Evidence{{Kind: &brevetv1.Evidence_Token{Token: &brevetv1.TokenEvidence{Secret: secret}}}}
}

// SerialBytes returns a certificate's serial number as the 20 bytes that the API uses.
func SerialBytes(c *x509.Certificate) []byte {
	return c.SerialNumber.FillBytes(make([]byte, pki.SerialSize))
}
