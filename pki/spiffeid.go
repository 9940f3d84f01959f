package pki

import (
	"fmt"
	"net/url"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// reservedRoot is the first path segment of Brevet's own identities.
const reservedRoot = "brevet"

// SPIFFEID is a well-formed SPIFFE ID with a path. It identifies an identity. The zero value is no identity. SPIFFE IDs
// can be compared with == and be map keys.
type SPIFFEID struct{ id spiffeid.ID }

// ParseSPIFFEID parses spiffe://<trust domain>/<path> (SPIFFE ID specification §2). The trust domain must be in lower
// case. The path must consist of segments of [A-Za-z0-9._-]+. The SPIFFE ID may have at most 2048 bytes.
func ParseSPIFFEID(text string) (SPIFFEID, error) {
	if len(text) > 2048 {
		return SPIFFEID{}, fmt.Errorf("a SPIFFE ID has at most 2048 bytes, not %d", len(text))
	}
	id, err := spiffeid.FromString(text)
	if err != nil {
		return SPIFFEID{}, fmt.Errorf("%q is not a SPIFFE ID (spiffe://trust-domain/path): %w", text, err)
	}
	if id.Path() == "" {
		return SPIFFEID{}, fmt.Errorf("%q names a trust domain, not an identity in it: add a path", text)
	}
	return SPIFFEID{id}, nil
}

// SPIFFEIDIn returns the identity with a path, such as "device/42", in a trust domain.
func SPIFFEIDIn(trustDomain, path string) (SPIFFEID, error) {
	return ParseSPIFFEID("spiffe://" + trustDomain + "/" + strings.TrimPrefix(path, "/"))
}

// ParseTrustDomain checks the name of a trust domain, which has at most 255 bytes (SPIFFE ID specification §2.1).
func ParseTrustDomain(text string) (string, error) {
	if len(text) > 255 {
		return "", fmt.Errorf("the name of a trust domain has at most 255 bytes, not %d", len(text))
	}
	td, err := spiffeid.TrustDomainFromString(text)
	if err != nil || td.Name() != text {
		return "", fmt.Errorf("%q is not a trust domain: use lower-case letters, digits, dots, dashes and underscores", text)
	}
	return text, nil
}

// String returns the URI.
func (s SPIFFEID) String() string { return s.id.String() }

// URL returns the URI as [net/url.URL], the type of URI names in crypto/x509.
func (s SPIFFEID) URL() *url.URL { return s.id.URL() }

// TrustDomain returns the name of the trust domain.
func (s SPIFFEID) TrustDomain() string { return s.id.TrustDomain().Name() }

// Path returns the path without its leading slash.
func (s SPIFFEID) Path() string { return strings.TrimPrefix(s.id.Path(), "/") }

// Reserved reports whether the identity is one of Brevet's own, which no policy can grant. It ignores the case of the
// reserved segment, so that similar paths cannot be granted either.
func (s SPIFFEID) Reserved() bool {
	first, _, _ := strings.Cut(s.Path(), "/")
	return strings.EqualFold(first, reservedRoot)
}

// IsZero reports whether s is the zero value, which is no identity.
func (s SPIFFEID) IsZero() bool { return s.id.IsZero() }

// serverPath is the path of the only server of a trust domain. Servers that share a store have a name after it.
const serverPath = reservedRoot + "/server"

// ServerID returns the identity of a server of a trust domain. name is empty for the only one.
func ServerID(trustDomain, name string) (SPIFFEID, error) {
	return ofServer(trustDomain, serverPath, name)
}

// IsServer reports whether the identity is that of a server. Every agent requires that its server has such an identity.
func (s SPIFFEID) IsServer() bool {
	name, is := strings.CutPrefix(s.Path(), serverPath)
	return is && (name == "" || name[0] == '/' && !strings.Contains(name[1:], "/"))
}

// ServerName returns the name of a server among those that share a store. It is empty for the only one, and for an
// identity that is not that of a server.
func (s SPIFFEID) ServerName() string {
	if !s.IsServer() {
		return ""
	}
	return strings.TrimPrefix(strings.TrimPrefix(s.Path(), serverPath), "/")
}

// VAID returns the identity of a server's OCSP responder for one issuing CA. name is that of the server, as in ServerID.
func VAID(trustDomain string, issuer IssuerID, name string) (SPIFFEID, error) {
	return ofServer(trustDomain, reservedRoot+"/va/"+issuer.Short(), name)
}

func ofServer(trustDomain, path, name string) (SPIFFEID, error) {
	if name != "" {
		path += "/" + name
	}
	return SPIFFEIDIn(trustDomain, path)
}

// OperatorPath is the prefix of the reserved paths of operators.
const OperatorPath = reservedRoot + "/operator/"

// IsOperator reports whether the identity is that of an operator.
func (s SPIFFEID) IsOperator() bool { return strings.HasPrefix(s.Path(), OperatorPath) }

// OperatorID returns the identity of an operator.
func OperatorID(trustDomain, name string) (SPIFFEID, error) {
	if strings.Contains(name, "/") {
		return SPIFFEID{}, fmt.Errorf("%q is not an operator's name: use letters, digits, dots, dashes and underscores", name)
	}
	return SPIFFEIDIn(trustDomain, OperatorPath+name)
}
