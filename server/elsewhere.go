package server

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
)

// DelegateRequests passes requests for the certificates of OCSP delegates to the servers that have the keys of the CAs. It
// is safe for concurrent use.
type DelegateRequests interface {
	// PutDelegateRequest durably stores a request of a server, in place of its earlier one for the same CA. It refuses a
	// server that has never opened the store. A request leaves if its server does not repeat it for an hour.
	PutDelegateRequest(ctx context.Context, d ra.DelegateRequest) error
	// DelegateRequests returns the requests for a CA that have not ended, at most one of each server, while this server signs
	// the CRLs of the CA. Otherwise it returns none.
	DelegateRequests(ctx context.Context, issuer pki.IssuerID) ([]ra.DelegateRequest, error)
	// EndDelegateRequest ends a request, unless the server has replaced it. The refusal is nil if the certificate was issued.
	EndDelegateRequest(ctx context.Context, d ra.DelegateRequest, refusal *pki.Refusal) error
	// DelegateRefusal returns the refusal with which a request ended. It returns nil if there is none, or if the server has
	// repeated the request since.
	DelegateRefusal(ctx context.Context, d ra.DelegateRequest) (*pki.Refusal, error)
}

const (
	// delegatesEvery is the interval at which a server looks for requests of other servers, and for responses to its own.
	delegatesEvery = time.Second
	// repeatRequestAfter is how often a server repeats a request that has no response, or that was refused. Its certificate may
	// have been renewed, and an operator may have removed the cause of the refusal.
	repeatRequestAfter = 10 * time.Minute
)

// remoteIdentity is an OCSP delegate of this server for a CA whose key another server has. It implements
// [enroll.Authority]: it passes the agent's requests to that server through the store.
type remoteIdentity struct {
	*selfIdentity
	issuer   pki.IssuerID
	server   string // the name of this server
	requests DelegateRequests
	own      *enroll.Agent // whose certificate authenticates the requests

	last ra.DelegateRequest // only the goroutine of the agent uses it
	// refused is why another server has refused the request that was stored last, or nil.
	refused atomic.Pointer[pki.Refusal]
}

// Enroll implements enroll.Authority.
func (r *remoteIdentity) Enroll(ctx context.Context, req enroll.EnrollRequest) (enroll.Credential, error) {
	return r.obtain(ctx, req.RequestID, req.CSR)
}

// Renew implements enroll.Authority.
func (r *remoteIdentity) Renew(ctx context.Context, req enroll.RenewRequest) (enroll.Credential, error) {
	return r.obtain(ctx, req.RequestID, req.CSR)
}

// obtain requests a certificate, and waits for it until ctx ends.
func (r *remoteIdentity) obtain(ctx context.Context, request pki.RequestID, csr []byte) (enroll.Credential, error) {
	r.last = ra.DelegateRequest{Issuer: r.issuer, Server: r.server, RequestID: request, CSR: csr}
	cert, err := r.await(ctx)
	if err != nil {
		return enroll.Credential{}, err
	}
	return r.credential(cert)
}

// await puts the last request into the store, repeats it, and waits until another server has issued the certificate or refused
// the request. If ctx ends before, the error is temporary.
func (r *remoteIdentity) await(ctx context.Context) (ca.Certificate, error) {
	var put time.Time
	for {
		cert, issued, err := r.registrar.Delegated(ctx, r.last)
		if issued {
			return cert, nil
		}
		if err == nil {
			err = r.refusal(ctx)
		}
		if err == nil && (r.isOutdated() || time.Since(put) > repeatRequestAfter) {
			if err = r.put(ctx); err == nil {
				put = time.Now()
			}
		}
		if _, refused := pki.AsRefusal(err); refused {
			return cert, err
		}
		select {
		case <-ctx.Done():
			return cert, &unansweredError{err}
		case <-time.After(delegatesEvery):
		}
	}
}

// refusal returns the refusal of the last request, unless the request is outdated.
func (r *remoteIdentity) refusal(ctx context.Context) error {
	refusal, err := r.requests.DelegateRefusal(ctx, r.last)
	if refusal == nil || r.isOutdated() {
		return err
	}
	r.refused.Store(refusal)
	return refusal
}

// isOutdated reports whether the last request has no certificate of the server yet, or another one than the server's current one.
func (r *remoteIdentity) isOutdated() bool {
	own := r.own.Pair()
	return own != nil && !bytes.Equal(own.Certificate.Raw, r.last.Certificate)
}

// rest waits after a failure until the request can be repeated.
func (r *remoteIdentity) rest(ctx context.Context) {
	for begun := time.Now(); ctx.Err() == nil; {
		select {
		case <-ctx.Done():
		case <-time.After(delegatesEvery):
		}
		if r.refused.Load() == nil || r.isOutdated() || time.Since(begun) > repeatRequestAfter {
			return
		}
	}
}

// put signs the last request with the key of the server's certificate, and stores it.
func (r *remoteIdentity) put(ctx context.Context) error {
	own := r.own.Pair()
	if own == nil {
		return errors.New("the server has no certificate of its own")
	}
	parsed, err := x509.ParseCertificateRequest(r.last.CSR)
	if err != nil {
		return err
	}
	key := pki.HashSPKI(parsed.RawSubjectPublicKeyInfo)
	digest := sha256.Sum256(pki.DelegateStatement(r.id.TrustDomain(), r.issuer, r.server, r.last.RequestID, key))
	if r.last.Signature, err = own.Key.Sign(rand.Reader, digest[:], crypto.SHA256); err != nil { // a key of serverKeys
		return err
	}
	r.last.Certificate = own.Certificate.Raw
	r.refused.Store(nil)
	return r.requests.PutDelegateRequest(ctx, r.last)
}

// unansweredError is the temporary error of a request for a delegate that no server has answered.
type unansweredError struct{ cause error } // nil if the store works

func (e *unansweredError) Error() string {
	const text = "no server with the key of the CA has issued the certificate of the OCSP delegate yet"
	if e.cause != nil {
		return fmt.Sprintf("%s: %v", text, e.cause)
	}
	return text
}

func (e *unansweredError) Unwrap() error { return e.cause }

// Temporary reports that a repeat of the request may succeed.
func (e *unansweredError) Temporary() bool { return true }

// requestDelegate creates the agent of an OCSP delegate for a CA whose key another server has. The responder uses the
// certificate that an earlier process has obtained. The agent requests others when the server runs.
func (s *Server) requestDelegate(cert *x509.Certificate) error {
	issuer := pki.IssuerOf(cert)
	id, err := pki.VAID(s.config.TrustDomain, issuer, s.config.Server)
	if err != nil {
		return err
	}
	chain, err := ca.ChainOf(cert, s.config.Authorities)
	if err != nil {
		return err
	}
	if s.delegateKeys, err = s.keysOfDelegates(); err != nil {
		return err
	}
	r := &remoteIdentity{
		selfIdentity: &selfIdentity{id: id, registrar: s.registrar, authority: s.authority, renewals: s.rotations},
		issuer:       issuer, server: s.config.Server, requests: s.config.Stores.Delegates, own: s.own,
	}
	agent, err := s.newAgent(delegateDirectory(issuer), enroll.Config{
		Authority: r, KeyType: s.delegateKeys, Log: s.log.With("identity", id.Path()),
		Evidence:  func() ([]enroll.Evidence, error) { return nil, nil }, // the certificate of the server authenticates its requests
		Bootstrap: enroll.Bootstrap{RootFingerprint: sha256.Sum256(chain.Root.Raw), TrustDomain: s.config.TrustDomain},
	})
	if err != nil {
		return err
	}
	d := delegate{Agent: agent, issuer: issuer, subject: cert.Subject.String(), remote: r}
	s.delegates = append(s.delegates, d)
	if p := agent.Pair(); p != nil && !p.Expired(s.config.Clock()) {
		s.useDelegate(d, p)
	}
	return nil
}

// keepDelegated obtains the certificates of a delegate until ctx ends. If another server has the key, the agent renews a
// certificate until it expires. Then awaitDelegated waits for the next one.
func (s *Server) keepDelegated(ctx context.Context, d delegate) error {
	if d.remote == nil {
		return s.keepEnrolled(ctx, d.Agent)
	}
	for ctx.Err() == nil {
		s.awaitDelegated(ctx, d)
		if p := d.Pair(); p != nil {
			valid, cancel := context.WithDeadline(ctx, p.Certificate.NotAfter)
			_ = s.keepEnrolled(valid, d.Agent) // nil always
			cancel()
		}
	}
	return nil
}

// awaitDelegated waits until a delegate has a certificate that has not expired. The agent itself would wait for minutes
// between two requests, also if the other server has begun to run.
func (s *Server) awaitDelegated(ctx context.Context, d delegate) {
	isWaiting, failure := false, "" // what the log has
	for ctx.Err() == nil {
		if p := d.Pair(); p != nil && !p.Expired(time.Now()) { // by the clock of the agent
			return
		}
		err := d.Ensure(ctx)
		if pki.IsTemporary(err) && ctx.Err() == nil {
			if !isWaiting {
				isWaiting, failure = true, ""
				s.log.Warn("another server must issue the certificate of an OCSP delegate, waiting and answering tryLater", "issuer", d.subject, "error", err)
			}
			_, err = d.remote.await(ctx) // if it is nil, Ensure then returns the certificate
		}
		if err == nil || ctx.Err() != nil {
			continue
		}
		if failure != err.Error() {
			isWaiting, failure = false, err.Error()
			s.log.Warn("requesting the certificate of an OCSP delegate failed, retrying and answering tryLater", "issuer", d.subject, "error", err)
		}
		d.remote.rest(ctx)
	}
}

// answerDelegates issues the certificates that other servers request for their OCSP delegates, until ctx ends. It does so
// for the CAs whose CRLs this server signs.
func (s *Server) answerDelegates(ctx context.Context) error {
	failing := false
	for ctx.Err() == nil {
		var failed error
		for _, iss := range s.config.Issuers {
			failed = errors.Join(failed, s.answerDelegatesOf(ctx, iss.ID))
		}
		if failed != nil && !failing && ctx.Err() == nil {
			s.log.Warn("issuing the certificates of other servers' OCSP delegates failed, retrying", "error", failed)
		}
		failing = failed != nil
		select {
		case <-ctx.Done():
		case <-time.After(delegatesEvery):
		}
	}
	return nil
}

// answerDelegatesOf answers the requests for one CA. Those that it has answered or refused end.
func (s *Server) answerDelegatesOf(ctx context.Context, issuer pki.IssuerID) error {
	all, err := s.config.Stores.Delegates.DelegateRequests(ctx, issuer)
	for _, d := range all {
		cert, aerr := s.answerDelegate(ctx, d)
		refusal, refused := pki.AsRefusal(aerr)
		switch {
		case aerr == nil:
			s.log.Info("issued the certificate of another server's OCSP delegate", "server", d.Server, "issuer", issuer.Short(), "serial", cert.Ref.Serial.String())
		case refused && !mayRepeat(refusal.Rule):
			s.log.Warn("refused the certificate of another server's OCSP delegate", "server", d.Server, "issuer", issuer.Short(), "error", aerr)
		default:
			err = errors.Join(err, fmt.Errorf("the delegate of %s: %w", d.Server, aerr))
			continue
		}
		err = errors.Join(err, s.config.Stores.Delegates.EndDelegateRequest(ctx, d, refusal))
	}
	return err
}

// mayRepeat reports whether the same request may succeed after a refusal by a rule.
func mayRepeat(rule pki.Rule) bool {
	switch rule.Class() {
	case pki.Aborted, pki.ResourceExhausted, pki.Unavailable:
		return true
	default:
		return rule == pki.RuleIdentityStale
	}
}

// answerDelegate verifies the certificate and the signature of a request, and issues the certificate of the delegate.
func (s *Server) answerDelegate(ctx context.Context, d ra.DelegateRequest) (ca.Certificate, error) {
	by, err := s.verifyDelegateRequest(d)
	if err != nil {
		return ca.Certificate{}, err
	}
	return s.registrar.Delegate(ctx, d, by)
}

// verifyDelegateRequest returns the server that has made a request. It checks the chain, the time, the purpose and the
// identity of the server's certificate (RFC 5280 section 6), and that its key has signed the request.
func (s *Server) verifyDelegateRequest(d ra.DelegateRequest) (pki.Caller, error) {
	const hint = "send the request with the current certificate of the server"
	refuse := func(err error) (pki.Caller, error) {
		return pki.Caller{}, pki.Refuse(pki.RuleCertificate, hint, "the certificate of the server %s: %v", d.Server, err)
	}
	leaf, err := x509.ParseCertificate(d.Certificate)
	if err != nil {
		return refuse(err)
	}
	roots, intermediates := trusted(s.config)
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: s.config.Clock(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return refuse(err)
	}
	id, err := pki.ServerID(s.config.TrustDomain, d.Server)
	if err != nil {
		return refuse(err)
	}
	if d.Server == "" || leaf.IsCA || len(leaf.URIs) != 1 || leaf.URIs[0].String() != id.String() {
		return refuse(errors.New("it is not the certificate of this server"))
	}
	serial, err := pki.SerialFromInt(leaf.SerialNumber)
	if err != nil {
		return refuse(err)
	}
	csr, err := x509.ParseCertificateRequest(d.CSR)
	if err != nil {
		return refuse(err)
	}
	statement := pki.DelegateStatement(s.config.TrustDomain, d.Issuer, d.Server, d.RequestID, pki.HashSPKI(csr.RawSubjectPublicKeyInfo))
	if !pki.VerifyStatement(leaf.PublicKey, statement, d.Signature) {
		return pki.Caller{}, pki.Refuse(pki.RuleKeyPossession, hint, "the key of the server %s has not signed the request", d.Server)
	}
	return pki.Caller{Identity: id, Certificate: pki.CertRef{Issuer: pki.IssuerOf(chains[0][1]), Serial: serial}}, nil
}
