package acme

import (
	"context"
	"crypto/x509"
	"log/slog"
	"net/http"
	"net/netip"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/ra/nonce"
	"github.com/brevet-pki/brevet/server/acme/jws"
	"github.com/brevet-pki/brevet/server/acme/validation"
	"github.com/brevet-pki/brevet/server/admission"
	"github.com/brevet-pki/brevet/server/authz"
	"github.com/brevet-pki/brevet/server/frontdoor"
)

// Config holds what a Door depends on. All fields are required unless they say otherwise.
type Config struct {
	// URL is the external URL of the HTTPS listener, without a slash at its end, such as https://ca.fleet.example:8443.
	URL string
	// MinVersion is the oldest TLS version of clients.
	MinVersion uint16

	Accounts       Accounts
	AccountChanges AccountChanges
	Orders         Orders
	Authorizations Authorizations
	Certificates   Certificates
	Terms          Terms
	Renewals       Renewals
	// Authorities are all installed CA certificates.
	Authorities []*x509.Certificate

	Validator *validation.Validator
	Nonces    UsedNonces
	// NonceSealer has the key of the nonces, which all servers have that share Nonces. Nil for a random key, if Nonces is of
	// this process alone.
	NonceSealer *nonce.Sealer
	Refusals    RefusalLog
	Meter       Meter
	Clock       func() time.Time
	Log         *slog.Logger
}

// Meter counts validations. It is safe for concurrent use.
type Meter interface {
	// Validated records a validation that has ended, its failure or nil, and its duration. If the validation was not begun in
	// time, the duration is zero.
	Validated(challenge string, failure *pki.Refusal, took time.Duration)
}

// Door serves ACME. It is safe for concurrent use.
type Door struct {
	config  Config
	nonces  *nonces
	issuers map[string]pki.IssuerID // by key identifier (RFC 5280 §4.2.1.2)
	pool    *validation.Pool
	keys    jws.Keys      // of accounts
	awaits  chan struct{} // holds a value for each request that waits for a validation

	newAccounts *admission.Quota[netip.Addr] // without an external key
	keyChanges  *admission.Quota[acme.ID]
}

// New returns a Door. Close ends its validations.
func New(c Config) (*Door, error) {
	d := &Door{
		config: c, issuers: map[string]pki.IssuerID{}, pool: validation.NewPool(c.Log), awaits: make(chan struct{}, maxAwaits),
		newAccounts: admission.NewQuota[netip.Addr]("new accounts without an external key from this address", hourlyEach),
		keyChanges:  admission.NewQuota[acme.ID]("key changes of this account", hourlyEach),
	}
	var err error
	if d.nonces, err = newNonces(c.Nonces, c.NonceSealer); err != nil {
		return nil, err
	}
	for _, a := range c.Authorities {
		d.issuers[string(a.SubjectKeyId)] = pki.IssuerOf(a)
	}
	return d, nil
}

// Validations returns the number of validations that run, and of those that wait.
func (d *Door) Validations() (active, waiting int) { return d.pool.Running(), d.pool.Waiting() }

// Close cancels the validations, and waits until they have ended.
func (d *Door) Close() { d.pool.Close() }

// Door returns the routes for the HTTPS listener.
func (d *Door) Door() frontdoor.Door {
	get := func(method, path string, op authz.Operation, handle handler) frontdoor.Route {
		return frontdoor.Route{Method: method, Path: path, Operation: op, MaxBody: 0, Handle: handle}
	}
	post := func(path string, op authz.Operation, handle signedHandler, signers signers) frontdoor.Route {
		return frontdoor.Route{
			Method: http.MethodPost, Path: path, Operation: op, MaxBody: jws.MaxSize, Handle: d.signed(handle, signers),
		}
	}
	return frontdoor.Door{
		Name: "acme", MinVersion: d.config.MinVersion, Fail: d.fail,
		Routes: []frontdoor.Route{
			get(http.MethodGet, pathDirectory, authz.ACMEDirectory, d.directory),
			post(pathDirectory, authz.ACMEDirectory, d.signedDirectory, byAccount),
			get(http.MethodHead, pathNewNonce, authz.ACMEDirectory, d.newNonce),
			get(http.MethodGet, pathNewNonce, authz.ACMEDirectory, d.newNonce),
			post(pathNewNonce, authz.ACMEDirectory, d.signedNonce, byAccount),
			post(pathNewAccount, authz.ACMEAccount, d.newAccount, byKey),
			post(pathAccount+"{account}", authz.ACMEAccount, d.account, byAccount),
			post(pathKeyChange, authz.ACMEAccount, d.keyChange, byAccount),
			post(pathNewOrder, authz.ACMEOrder, d.newOrder, byAccount),
			post(pathOrder+"{order}", authz.ACMEOrder, d.order, byAccount),
			post(pathOrder+"{order}"+pathFinalize, authz.ACMEFinalize, d.finalize, byAccount),
			post(pathAuthorization+"{authorization}", authz.ACMEOrder, d.authorization, byAccount),
			post(pathChallenge+"{authorization}/{type}", authz.ACMEOrder, d.challenge, byAccount),
			post(pathCertificate+"{issuer}/{serial}", authz.ACMECertificate, d.certificate, byAccount),
			post(pathRevoke, authz.ACMERevoke, d.revoke, byAccount|byKey),
			get(http.MethodGet, pathRenewalInfo+"{certificate}", authz.ACMERenewalInfo, d.renewalInfo),
		},
	}
}

// The paths of the resources.
const (
	prefix            = "/acme"
	pathDirectory     = prefix + "/directory"
	pathNewNonce      = prefix + "/new-nonce"
	pathNewAccount    = prefix + "/new-account"
	pathAccount       = prefix + "/account/"
	pathKeyChange     = prefix + "/key-change"
	pathNewOrder      = prefix + "/new-order"
	pathOrder         = prefix + "/order/"
	pathFinalize      = "/finalize" // after the path of the order
	pathAuthorization = prefix + "/authorization/"
	pathChallenge     = prefix + "/challenge/"
	pathCertificate   = prefix + "/certificate/"
	pathRevoke        = prefix + "/revoke-cert"
	pathRenewalInfo   = prefix + "/renewal-info/"
)

// url returns the external URL of a resource.
func (d *Door) url(path string) string { return d.config.URL + path }

// handler serves a request without a signature.
type handler = func(ctx context.Context, r *frontdoor.Request) (frontdoor.Response, error)
