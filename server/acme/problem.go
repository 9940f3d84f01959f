package acme

import (
	"encoding/json"
	"errors"
	"net/http"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/server/acme/jws"
	"github.com/brevet-pki/brevet/server/frontdoor"
	"github.com/brevet-pki/brevet/server/outcome"
)

// errorPrefix is the prefix of the types of problems (RFC 8555 §6.7).
const errorPrefix = "urn:ietf:params:acme:error:"

// problem is a problem document (RFC 9457).
type problem struct {
	Type       string `json:"type"`
	Detail     string `json:"detail"`
	Status     int    `json:"status,omitempty"`
	Identifier any    `json:"identifier,omitempty"`
	// Algorithms are the accepted algorithms, if the one of the request is not (RFC 8555 §6.2).
	Algorithms  []string   `json:"algorithms,omitempty"`
	Subproblems []*problem `json:"subproblems,omitempty"`
}

// problemOf returns the problem of a refusal. It returns nil for nil.
func problemOf(r *pki.Refusal) *problem {
	if r == nil {
		return nil
	}
	status := outcome.Of(r.Rule)
	p := &problem{Type: errorPrefix + status.ACME, Detail: r.Error(), Status: status.HTTP}
	if r.Rule == pki.RuleACMEAlgorithm {
		p.Algorithms = jws.Algorithms()
	}
	return p
}

// conflict is a refusal because of a resource that exists. The response has its URL in the Location header.
type conflict struct {
	*pki.Refusal
	url string
}

// Unwrap returns the refusal.
func (c conflict) Unwrap() error { return c.Refusal }

// fail encodes an error. A refused POST gets a nonce too, with which the client can repeat it.
func (d *Door) fail(r *frontdoor.Request, err error) frontdoor.Response {
	h := d.newHeader()
	h.Set("Content-Type", "application/problem+json")
	if after := pki.RetryAfter(err); after > 0 {
		setRetryAfter(h, after)
	}
	if c, ok := errors.AsType[conflict](err); ok {
		h.Set("Location", c.url)
	}
	resp := frontdoor.Response{Header: h}
	p := d.problem(err)
	resp.Status = p.Status
	resp.Body, _ = json.Marshal(p) // never fails: the fields are texts and numbers
	if r != nil && r.Request != nil && r.Method == http.MethodPost {
		if next, err := d.nonces.next(r.Context(), d.config.Clock()); err == nil {
			h.Set("Replay-Nonce", next)
		}
	}
	return resp
}

// problem returns the problem of an error. It does not contain the text of an error that is not a refusal.
func (d *Door) problem(err error) *problem {
	if r, ok := pki.AsRefusal(err); ok {
		p := problemOf(r)
		if several, ok := errors.AsType[*acme.IdentifierRefusals](err); ok {
			for _, s := range several.All {
				sub := problemOf(s.Refusal)
				sub.Status, sub.Identifier = 0, identifierOut(s.Identifier)
				p.Subproblems = append(p.Subproblems, sub)
			}
		}
		return p
	}
	if pki.IsTemporary(err) {
		return &problem{Type: errorPrefix + "serverInternal", Detail: "the server cannot do this now, and its log says why: repeat the request after the delay", Status: http.StatusServiceUnavailable}
	}
	return &problem{Type: errorPrefix + "serverInternal", Detail: "internal error: the server's log has the details", Status: http.StatusInternalServerError}
}
