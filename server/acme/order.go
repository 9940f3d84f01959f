package acme

import (
	"bytes"
	"context"
	"encoding/pem"
	"net/http"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/server/acme/jws"
	"github.com/brevet-pki/brevet/server/frontdoor"
)

// identifier is an identifier in JSON (RFC 8555 §9.7.7).
type identifier struct {
	Type  acme.IdentifierType `json:"type"`
	Value string              `json:"value"`
}

func identifierOut(i acme.Identifier) identifier { return identifier(i) }

// order is an order in JSON (RFC 8555 §7.1.3).
type order struct {
	Status         acme.Status  `json:"status"`
	Expires        string       `json:"expires,omitempty"`
	Identifiers    []identifier `json:"identifiers"`
	Profile        string       `json:"profile,omitempty"`  // draft-ietf-acme-profiles
	Replaces       string       `json:"replaces,omitempty"` // RFC 9773 §5
	Error          *problem     `json:"error,omitempty"`
	Authorizations []string     `json:"authorizations"`
	Finalize       string       `json:"finalize"`
	Certificate    string       `json:"certificate,omitempty"`
}

// orderRetry is the delay after which a client should read an order that is processing.
const orderRetry = time.Second

// orderOut returns the response with an order.
func (d *Door) orderOut(status int, o acme.Order) (frontdoor.Response, error) {
	url := d.url(pathOrder + o.ID.String())
	out := order{
		Status: o.Status, Expires: stamp(o.ExpiresAt), Profile: o.Profile, Replaces: d.certID(o.Replaces), Error: problemOf(o.Failure),
		Authorizations: []string{}, Finalize: url + pathFinalize,
	}
	for _, i := range o.Identifiers {
		out.Identifiers = append(out.Identifiers, identifierOut(i))
	}
	for _, id := range o.Authorizations {
		out.Authorizations = append(out.Authorizations, d.url(pathAuthorization+id.String()))
	}
	if !o.Certificate.IsZero() {
		out.Certificate = d.url(pathCertificate + o.Certificate.Issuer.String() + "/" + o.Certificate.Serial.String())
	}
	resp, err := d.object(status, out)
	if err != nil {
		return resp, err
	}
	resp.Header.Set("Location", url)
	if o.Status == acme.StatusProcessing {
		setRetryAfter(resp.Header, orderRetry)
	}
	return resp, nil
}

// newOrder serves newOrder (RFC 8555 §7.4).
func (d *Door) newOrder(ctx context.Context, r *request) (frontdoor.Response, error) {
	var payload struct {
		Identifiers []identifier `json:"identifiers"`
		NotBefore   *string      `json:"notBefore"`
		NotAfter    *string      `json:"notAfter"`
		Profile     string       `json:"profile"`
		Replaces    *string      `json:"replaces"`
	}
	if err := r.decode(&payload); err != nil {
		return frontdoor.Response{}, err
	}
	if len(payload.Identifiers) == 0 {
		return frontdoor.Response{}, pki.Refuse(pki.RuleRequest, "send at least one identifier", "the order has no identifiers")
	}
	if payload.NotBefore != nil || payload.NotAfter != nil {
		return frontdoor.Response{}, pki.Refuse(pki.RuleLifetime,
			"order without notBefore and notAfter: the profile determines how long the certificate is valid",
			"the order has notBefore or notAfter")
	}
	n := acme.NewOrder{Profile: payload.Profile}
	for _, i := range payload.Identifiers {
		n.Identifiers = append(n.Identifiers, acme.Identifier(i))
	}
	if payload.Replaces != nil {
		var err error
		if n.Replaces, err = d.certificateOf(*payload.Replaces); err != nil {
			return frontdoor.Response{}, err
		}
	}
	o, err := d.config.Orders.NewOrder(ctx, r.account.ID, n)
	if err != nil {
		return frontdoor.Response{}, err
	}
	return d.orderOut(http.StatusCreated, o)
}

// orderID returns the ID of the order in the request's path.
func (r *request) orderID() (acme.ID, error) {
	id, ok := acme.ParseID(r.PathValue("order"))
	if !ok {
		return id, pki.Refuse(pki.RuleACMEOrder, "send the request to the URL of an order of this account", "the account has no such order")
	}
	return id, nil
}

// order serves an order (RFC 8555 §7.4).
func (d *Door) order(ctx context.Context, r *request) (frontdoor.Response, error) {
	id, err := r.orderID()
	if err != nil {
		return frontdoor.Response{}, err
	}
	if err := r.mustRead(); err != nil {
		return frontdoor.Response{}, err
	}
	o, err := d.config.Orders.Order(ctx, r.account.ID, id)
	if err != nil {
		return frontdoor.Response{}, err
	}
	return d.orderOut(http.StatusOK, o)
}

// finalize serves the finalize resource of an order (RFC 8555 §7.4).
func (d *Door) finalize(ctx context.Context, r *request) (frontdoor.Response, error) {
	id, err := r.orderID()
	if err != nil {
		return frontdoor.Response{}, err
	}
	var payload struct {
		CSR *string `json:"csr"`
	}
	if err := r.decode(&payload); err != nil {
		return frontdoor.Response{}, err
	}
	if payload.CSR == nil {
		return frontdoor.Response{}, pki.Refuse(pki.RuleCSR, "send the CSR as csr, in base64url of DER", "the request has no csr")
	}
	csr, err := jws.Decode(*payload.CSR)
	if err != nil {
		return frontdoor.Response{}, pki.Refuse(pki.RuleCSR, "send the CSR in base64url of DER, not in PEM", "the csr is not base64url without padding")
	}
	o, err := d.config.Orders.Finalize(ctx, r.account.ID, id, csr)
	if err != nil {
		return frontdoor.Response{}, err
	}
	return d.orderOut(http.StatusOK, o)
}

// certificate serves a certificate with its chain in PEM (RFC 8555 §7.4.2). The response has no Link to the CA's
// certificate (rel="up"): acmez, and so Caddy, would send a signed request there.
func (d *Door) certificate(ctx context.Context, r *request) (frontdoor.Response, error) {
	refusal := pki.Refuse(pki.RuleNotFound, "send the request to the URL in an order that is valid", "the account has no such certificate")
	issuer, err := pki.ParseIssuerID(r.PathValue("issuer"))
	if err != nil {
		return frontdoor.Response{}, refusal
	}
	serial, err := pki.ParseSerial(r.PathValue("serial"))
	if err != nil {
		return frontdoor.Response{}, refusal
	}
	if err := r.mustRead(); err != nil {
		return frontdoor.Response{}, err
	}
	chain, err := d.config.Certificates.Certificate(ctx, r.account.ID, pki.CertRef{Issuer: issuer, Serial: serial})
	if err != nil {
		return frontdoor.Response{}, err
	}
	var text bytes.Buffer
	for _, der := range chain {
		if err := pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: der}); err != nil {
			return frontdoor.Response{}, err
		}
	}
	resp := frontdoor.Response{Header: d.newHeader(), Body: text.Bytes()}
	resp.Header.Set("Content-Type", "application/pem-certificate-chain")
	return resp, nil
}
