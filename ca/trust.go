package ca

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"slices"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// TrustConfig holds the CA certificates of a trust domain, as ceremonies installed them. All fields are required; the
// lists may be empty.
type TrustConfig struct {
	// CAs are the installed CA certificates that were not removed: roots, issuing CAs, and CAs in between.
	CAs []*x509.Certificate
	// Retired are the IDs of the CAs that are retired.
	Retired []pki.IssuerID
	// Cross are the cross-certificates between the roots.
	Cross []*x509.Certificate
	Clock func() time.Time
}

// Trust says which CA certificates the members and relying parties of a trust domain get. While a root is changed, they
// get the old root and the new one, and the cross-certificates with which a party that has only one of them verifies
// certificates under the other. It is safe for concurrent use.
type Trust struct {
	roots, below []*x509.Certificate // the roots that are not retired, sorted by their bytes, and the CAs below them
	subjects     map[string]bool     // the subjects of all installed CAs, in DER
	crossings    []crossing
	chains       map[pki.IssuerID]IssuingCA // of the installed CAs that are no roots, without their keys
	clock        func() time.Time
}

// crossing is a cross-certificate, with the root that signed it and the root whose subject and key it has.
type crossing struct{ cross, signer, subject *x509.Certificate }

// NewTrust returns the Trust of a trust domain.
func NewTrust(c TrustConfig) *Trust {
	t := &Trust{subjects: map[string]bool{}, chains: map[pki.IssuerID]IssuingCA{}, clock: c.Clock}
	for _, cert := range c.CAs {
		t.subjects[string(cert.RawSubject)] = true
		iss, err := ChainOf(cert, c.CAs)
		if err == nil && len(iss.Chain) > 0 {
			t.chains[iss.ID] = iss
		}
		switch {
		case err == nil && slices.Contains(c.Retired, pki.IssuerOf(iss.Root)):
			// A relying party with the trust bundle could not verify a chain with this certificate.
		case IsRoot(cert):
			t.roots = append(t.roots, cert)
		default:
			t.below = append(t.below, cert)
		}
	}
	slices.SortFunc(t.roots, func(a, b *x509.Certificate) int { return bytes.Compare(a.Raw, b.Raw) })
	for _, cross := range c.Cross {
		if signer, subject := CrossRoots(cross, t.roots); signer != nil && subject != nil {
			t.crossings = append(t.crossings, crossing{cross, signer, subject})
		}
	}
	return t
}

// trustIn returns a Trust that has the chains of issuing CAs only.
func trustIn(issuing []IssuingCA, clock func() time.Time) *Trust {
	var all []*x509.Certificate
	for _, iss := range issuing {
		for _, c := range append(slices.Clone(iss.Chain), iss.Root) {
			if !slices.ContainsFunc(all, c.Equal) {
				all = append(all, c)
			}
		}
	}
	return NewTrust(TrustConfig{CAs: all, Clock: clock})
}

// chainOf returns an installed CA with its chain, and without its key.
func (t *Trust) chainOf(id pki.IssuerID) (iss IssuingCA, ok bool) {
	iss, ok = t.chains[id]
	return iss, ok
}

// Roots returns the roots of the trust bundle, sorted by their bytes: the installed roots that are neither retired nor
// expired. If all of them have expired, it returns the expired ones, because a trust bundle is never empty.
func (t *Trust) Roots() []*x509.Certificate {
	if valid := t.unexpired(t.roots); len(valid) > 0 {
		return valid
	}
	return slices.Clone(t.roots)
}

// unexpired returns the certificates that have not expired.
func (t *Trust) unexpired(certs []*x509.Certificate) []*x509.Certificate {
	now := t.clock()
	return slices.DeleteFunc(slices.Clone(certs), func(c *x509.Certificate) bool { return now.After(c.NotAfter) })
}

// Revision identifies the roots of the trust bundle. It is a hash of them, so that it is the same on every server.
func (t *Trust) Revision() [sha256.Size]byte {
	var all []byte
	for _, root := range t.Roots() {
		all = append(all, root.Raw...) // DER contains its length
	}
	return sha256.Sum256(all)
}

// Has reports whether an installed CA has a subject, in DER. Retired and expired CAs count, too.
func (t *Trust) Has(subject []byte) bool { return t.subjects[string(subject)] }

// Bundle returns the trust bundle in DER: its roots, and the CA certificates below them that have not expired, which
// are issuing CAs, CAs in between and cross-certificates. CAs below a retired root are not in it. It has what EST puts into its response about CA certificates
// (RFC 7030 section 4.1.3).
func (t *Trust) Bundle() (roots, intermediates [][]byte) {
	below := slices.Clone(t.below)
	for _, c := range t.crossings {
		if t.inForce(c) {
			below = append(below, c.cross)
		}
	}
	return rawOf(t.Roots()), rawOf(t.unexpired(below))
}

// RootsWith returns the roots of the trust bundle and, if it is not one of them, the root of a chain. A certificate
// under a retired root can still be delivered, in the response to a repeated request.
func (t *Trust) RootsWith(root *x509.Certificate) []*x509.Certificate {
	roots := t.Roots()
	if slices.ContainsFunc(roots, root.Equal) {
		return roots
	}
	return append(roots, root)
}

// CrossOf returns the cross-certificates with the subject and the key of a root, and the roots that signed them. Each
// cross-certificate extends the chains that end in this root, so that they end in another root of the trust bundle.
func (t *Trust) CrossOf(root *x509.Certificate) (cross, signers []*x509.Certificate) {
	for _, c := range t.crossings {
		if pki.IssuerOf(c.subject) == pki.IssuerOf(root) && t.inForce(c) {
			cross, signers = append(cross, c.cross), append(signers, c.signer)
		}
	}
	return cross, signers
}

// inForce reports whether a cross-certificate and the root that signed it have not expired.
func (t *Trust) inForce(c crossing) bool {
	now := t.clock()
	return !now.After(c.cross.NotAfter) && !now.After(c.signer.NotAfter)
}

// CrossRoots returns the root that signed a cross-certificate, and the root whose subject and key it has. Each is nil
// if it is not among the given roots.
func CrossRoots(cross *x509.Certificate, roots []*x509.Certificate) (signer, subject *x509.Certificate) {
	for _, root := range roots {
		switch {
		case pki.IssuerOf(cross) == pki.IssuerOf(root):
			subject = root
		case bytes.Equal(cross.RawIssuer, root.RawSubject) && cross.CheckSignatureFrom(root) == nil:
			signer = root
		}
	}
	return signer, subject
}

func rawOf(certs []*x509.Certificate) [][]byte {
	ders := make([][]byte, len(certs))
	for i, c := range certs {
		ders[i] = c.Raw
	}
	return ders
}
