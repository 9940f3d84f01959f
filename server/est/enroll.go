package est

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"net/http"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/server/frontdoor"
)

// enroll serves simpleenroll (RFC 7030 §4.2.1).
func (d *door) enroll(ctx context.Context, r *frontdoor.Request) (frontdoor.Response, error) {
	who, unproven := d.identify(r)
	e := ra.EnrollRequest{Evidence: who.evidence, From: r.From}
	l, err := d.label(r)
	if err != nil && unproven == nil {
		err = d.config.Registrar.NoteEvidence(ctx, e, err)
	} else if err == nil {
		err = unproven
	}
	if err != nil {
		return frontdoor.Response{}, err
	}
	e.Label = l.Name
	q, err := read(r)
	if err != nil {
		return frontdoor.Response{}, d.config.Registrar.NoteEvidence(ctx, e, err)
	}
	e.CSR, e.Linked = q.der, q.linked
	e.RequestID, e.Derived = requestID("enroll", who.name, q.key), true
	cert, err := d.config.Registrar.Enroll(ctx, e)
	if err != nil {
		return frontdoor.Response{}, err
	}
	return d.credential(l, cert)
}

// reenroll serves simplereenroll (RFC 7030 §4.2.2). The client has authenticated with the certificate to renew.
func (d *door) reenroll(ctx context.Context, r *frontdoor.Request) (frontdoor.Response, error) {
	l, err := d.label(r)
	if err != nil {
		return frontdoor.Response{}, err
	}
	q, err := read(r)
	if err != nil {
		return frontdoor.Response{}, err
	}
	before := r.Caller.Certificate
	cert, err := d.config.Registrar.Renew(ctx, ra.RenewRequest{
		RequestID: requestID("renew", append(before.Issuer.Bytes(), before.Serial.Bytes()...), q.key),
		Derived:   true, Identity: r.Caller.ID, Predecessor: before, Superseded: r.Caller.Past,
		CSR: q.der, Door: pki.DoorEST, Before: r.Chain[0], Label: l.Name, Linked: q.linked, From: r.From,
	})
	if err != nil {
		return frontdoor.Response{}, err
	}
	return d.credential(l, cert)
}

// client is how a client of simpleenroll authenticated.
type client struct {
	evidence []pki.Evidence
	name     []byte // identifies the evidence
}

// identify returns the evidence that a request was sent with: a token, a factory certificate, or both.
func (d *door) identify(r *frontdoor.Request) (client, error) {
	var c client
	if _, password, ok := r.BasicAuth(); ok {
		token, err := enroll.ParseToken(password)
		if err != nil {
			return c, pki.Refuse(pki.RuleToken, "send the text of the token as the password, with any user name",
				"the password is not the text of an enrollment token")
		}
		id := token.Secret.ID()
		c.evidence, c.name = append(c.evidence, token.Secret.Evidence()), append(c.name, id.String()...)
	}
	own := len(r.Chain) > 0 && d.isOwn(r.Chain[0])
	if len(r.Chain) > 0 && !own {
		if r.TLS == nil || r.TLS.DidResume {
			return client{}, pki.Refuse(pki.RuleCertificate, "open a new connection without a session ticket",
				"the TLS session was resumed, so that it does not prove possession of the certificate's key")
		}
		if r.Old {
			return client{}, pki.Refuse(pki.RuleCertificate, "open a new connection, and repeat the request",
				"the connection is so old that its handshake no longer proves possession of the certificate's key")
		}
		evidence := pki.X5CTLSEvidence{Certificates: r.Chain}
		digest := sha256.Sum256(r.Chain[0])
		c.evidence = append(c.evidence, pki.Evidence{Kind: pki.EvidenceX5CTLS, Value: evidence.Encode()})
		c.name = append(c.name, digest[:]...)
	}
	switch {
	case len(c.evidence) > 0:
		return c, nil
	case own:
		return c, pki.Refuse(pki.RuleUnauthenticated, "to renew this certificate, send the CSR to simplereenroll; "+
			"to enroll again, send an enrollment token", "a certificate of this CA is no evidence for a first certificate")
	default:
		return c, pki.Refuse(pki.RuleUnauthenticated, "send an enrollment token as the password of HTTP Basic, or connect with the "+
			"device's factory certificate", "the request has no enrollment token and no client certificate")
	}
}

// isOwn reports whether a certificate names a CA of this server as its issuer. Nothing is granted for that: such a
// certificate is no factory certificate.
func (d *door) isOwn(der []byte) bool {
	c, err := x509.ParseCertificate(der)
	return err == nil && d.config.Authorities.Has(c.RawIssuer)
}

// requestID returns the digest of what a request is about: the operation, how the client authenticated, and the key.
func requestID(operation string, client []byte, key pki.KeyHash) pki.RequestID {
	h := sha256.New()
	h.Write([]byte("brevet: request of EST\n" + operation + "\n" + key.String() + "\n"))
	h.Write(client)
	id, err := pki.RequestIDFromBytes(h.Sum(nil)[:16])
	if err != nil {
		return pki.RequestID{} // zero: the digest is all zeros, which does not happen
	}
	return id
}

// credential returns the response with a certificate (RFC 7030 §4.2.3). If the label says so, it contains the chain.
func (d *door) credential(l ra.Label, cert ca.Certificate) (frontdoor.Response, error) {
	all := [][]byte{cert.DER}
	if l.Chain {
		chain, _, err := d.config.Authorities.Chain(cert.Ref.Issuer)
		if err != nil {
			return frontdoor.Response{}, err
		}
		for _, c := range chain {
			all = append(all, c.Raw)
		}
	}
	return certsOnly(all)
}

// response returns a response in base64 (RFC 8951 §3.2). Clients of RFC 7030 expect the header for its encoding, which
// others ignore.
func response(contentType string, der []byte) frontdoor.Response {
	return frontdoor.Response{Body: encode(der), Header: http.Header{
		"Content-Type": {contentType}, "Content-Transfer-Encoding": {"base64"},
	}}
}
