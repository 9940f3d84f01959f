package acme

import (
	"context"
	"mime"
	"strings"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/server/acme/jws"
	"github.com/brevet-pki/brevet/server/frontdoor"
)

// signers are the keys that may sign a request.
type signers uint8

const (
	byAccount signers = 1 << iota // the key of an account, which the request names with kid
	byKey                         // any key, which the request contains as jwk
)

// request is a request whose signature has verified, and whose nonce was not used before.
type request struct {
	*frontdoor.Request
	url     string
	payload []byte
	// account is the account that has signed the request. It is the zero value if the key in the request has.
	account acme.Account
	key     *jws.Key
}

// isRead reports whether the request is a POST-as-GET (RFC 8555 §6.3).
func (r *request) isRead() bool { return len(r.payload) == 0 }

// decode decodes the payload, which must be a JSON object.
func (r *request) decode(into any) error {
	if err := jws.Unmarshal(r.payload, into); err != nil {
		return pki.Refuse(pki.RuleRequest, "send a JSON object with the members of RFC 8555",
			"the payload is not a JSON object, has a member twice, or has a member of another type")
	}
	return nil
}

// mustRead refuses a request that has a payload.
func (r *request) mustRead() error {
	if !r.isRead() {
		return pki.Refuse(pki.RuleRequest, "send a POST-as-GET request, which has an empty payload (RFC 8555 section 6.3)",
			"this resource can only be read, and the request has a payload")
	}
	return nil
}

type signedHandler = func(ctx context.Context, r *request) (frontdoor.Response, error)

const contentType = "application/jose+json"

// signed returns a handler that verifies a signed request before it calls handle. The nonce is used after the signature
// has verified, so that a third party cannot use it up.
func (d *Door) signed(handle signedHandler, by signers) handler {
	return func(ctx context.Context, r *frontdoor.Request) (frontdoor.Response, error) {
		if !isJOSE(r.Header.Get("Content-Type")) {
			return frontdoor.Response{}, pki.Refuse(pki.RuleACMEContentType, "send the Content-Type "+contentType,
				"the request has another Content-Type, or none")
		}
		m, err := jws.Parse(r.Content)
		if err != nil {
			return frontdoor.Response{}, err
		}
		verified, err := d.verify(ctx, r, m, by)
		if err != nil {
			return frontdoor.Response{}, err
		}
		if err := d.nonces.use(ctx, m.Nonce, d.config.Clock()); err != nil {
			return frontdoor.Response{}, err
		}
		resp, err := d.handle(ctx, verified, handle)
		if err != nil {
			return frontdoor.Response{}, d.record(ctx, verified.account, err)
		}
		return d.withNonce(ctx, resp)
	}
}

// isJOSE reports whether a Content-Type is that of a signed request. It may have parameters.
func isJOSE(have string) bool {
	if have == contentType {
		return true
	}
	t, _, err := mime.ParseMediaType(have)
	return err == nil && t == contentType
}

// handle calls the handler of a request, unless the account is not valid. It checks this only after the signature,
// because a stranger must not find out the status of an account.
func (d *Door) handle(ctx context.Context, r *request, handle signedHandler) (frontdoor.Response, error) {
	if account := r.account; !account.ID.IsZero() {
		if err := account.CheckValid(); err != nil {
			return frontdoor.Response{}, err
		}
	}
	return handle(ctx, r)
}

// record records a refusal of an account, and returns the error. Strangers, who sign with a key of their own, are recorded
// by the listener.
func (d *Door) record(ctx context.Context, account acme.Account, err error) error {
	if _, isRefusal := pki.AsRefusal(err); !isRefusal || account.ID.IsZero() {
		return err
	}
	id, unknown := d.config.Accounts.IdentityOf(ctx, account)
	if unknown != nil {
		id = pki.SPIFFEID{} // the entry names the account
	}
	evidence := pki.DigestEvidence(pki.Evidence{Kind: pki.EvidenceACME, Value: account.ID[:]})
	return d.config.Refusals.RecordEvidence(ctx, account.Actor(), id, pki.EvidenceRecord{Pieces: []pki.EvidenceDigest{evidence}}, err)
}

// verify checks the URL and the signature of a request.
func (d *Door) verify(ctx context.Context, r *frontdoor.Request, m *jws.Message, by signers) (*request, error) {
	verified := &request{Request: r, url: d.url(r.URL.RequestURI()), key: m.Key}
	if m.URL != verified.url {
		return nil, pki.Refuse(pki.RuleACMEURL,
			"send the request to a URL of the directory "+d.url(pathDirectory)+", and sign exactly this URL",
			"the request was signed for %.200q, and sent to %.200q", m.URL, verified.url)
	}
	var err error
	switch {
	case m.Key != nil && by&byKey == 0:
		return nil, pki.Refuse(pki.RuleACMEJWS, "sign with the key of an account, and send its URL as kid",
			"this resource needs an account, and the request contains a jwk")
	case m.Key == nil && by&byAccount == 0:
		return nil, pki.Refuse(pki.RuleACMEJWS, "send the key as jwk", "this resource needs a jwk, and the request contains a kid")
	case m.Key == nil:
		if verified.account, err = d.accountOf(ctx, m.KeyID); err != nil {
			return nil, err
		}
		if verified.key, err = d.keys.ParseSPKI(verified.account.Key); err != nil {
			return nil, err
		}
	}
	verified.payload, err = m.Verify(verified.key)
	return verified, err
}

// accountOf returns the account with a URL.
func (d *Door) accountOf(ctx context.Context, url string) (acme.Account, error) {
	const hint = "send the URL in the Location header of the response to newAccount as kid"
	text, isOurs := strings.CutPrefix(url, d.url(pathAccount))
	if !isOurs {
		return acme.Account{}, pki.Refuse(pki.RuleACMEJWS, hint, "the kid %.200q is not the URL of an account of this server", url)
	}
	id, ok := acme.ParseID(text)
	if !ok {
		return acme.Account{}, pki.Refuse(pki.RuleACMEAccount, hint, "there is no account %.200q", text)
	}
	return d.config.Accounts.Account(ctx, id)
}
