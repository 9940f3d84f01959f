package ra

import (
	"context"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
)

// IssuerLabel is the name of a label on the identity of a validation authority. Its value is the ID, in hexadecimal, of
// the issuing CA whose OCSP responses the validation authority signs.
const IssuerLabel = "issuer"

// DelegateProfile is the name of the profile of OCSP delegates.
const DelegateProfile = "ocsp"

// DelegateIdentity returns the attributes of the identity of an OCSP delegate.
func DelegateIdentity(issuer pki.IssuerID) NewIdentity {
	return NewIdentity{Kind: pki.VA, Profile: DelegateProfile, Labels: map[string]string{IssuerLabel: issuer.String()}}
}

// DelegateRequest is the request of a server for the certificate of its OCSP delegate, for an issuing CA whose key is in
// the HSM of another server. Servers pass it on through the store.
type DelegateRequest struct {
	Issuer    pki.IssuerID
	Server    string // the name of the server
	RequestID pki.RequestID
	CSR       []byte // PKCS #10, DER
	// Certificate is the server's own certificate in DER. Its key has made the Signature of a [pki.DelegateStatement].
	Certificate, Signature []byte
}

// Delegate issues the certificate of an OCSP delegate to the server that requests it. by is that server, with the
// certificate in the request. The caller must have verified that the certificate chains to this CA, is within its
// validity period and was issued to by, and that its key has signed the request. The transaction that records the
// certificate checks that the server's certificate is good, and that a server with its name has opened the store.
func (r *Registrar) Delegate(ctx context.Context, d DelegateRequest, by pki.Caller) (ca.Certificate, error) {
	id, err := pki.VAID(r.trustDomain, d.Issuer, d.Server)
	if err != nil {
		return ca.Certificate{}, asRefusal(pki.RuleRequest, err)
	}
	actor := pki.ActorCaller(by.Identity, by.Certificate)
	cert, err := r.delegate(ctx, id, d, actor)
	return cert, r.auditor.Record(ctx, actor, id, err)
}

func (r *Registrar) delegate(ctx context.Context, id pki.SPIFFEID, d DelegateRequest, by pki.Actor) (ca.Certificate, error) {
	none := ca.Certificate{}
	if server := by.Caller().Identity; d.Server == "" || server.ServerName() != d.Server || server.TrustDomain() != r.trustDomain {
		return none, pki.Refuse(pki.RuleAccess, "request certificates of the server's own OCSP delegates", "%s is not the server %q", server, d.Server)
	}
	c, err := parseCSR(d.CSR)
	if err != nil {
		return none, err
	}
	done, err := r.perIdentity.take(ctx, id)
	if err != nil {
		return none, err
	}
	defer done()
	return repeatStale(func() (ca.Certificate, error) { return r.delegateAs(ctx, id, c, d, by) })
}

// delegateAs registers the identity of an OCSP delegate or corrects it, and issues the certificate. The caller holds the lock
// of the identity.
func (r *Registrar) delegateAs(ctx context.Context, id pki.SPIFFEID, c csr, d DelegateRequest, by pki.Actor) (ca.Certificate, error) {
	none := ca.Certificate{}
	want := DelegateIdentity(d.Issuer)
	if _, err := r.Reserve(ctx, id, want, pki.ActorSystem("va")); err != nil {
		return none, err
	}
	rev := r.revision()
	q := IssuanceQuery{
		Identity: id, Request: d.RequestID, Key: c.keyHash, At: r.clock(), MaxUnexpired: operatorFactor * rev.Profiles.MaxUnexpired(),
	}
	st, err := r.store.IssuanceState(ctx, q)
	if err != nil {
		return none, err
	}
	if st.Prior != nil {
		return answered(st.Prior, c.keyHash)
	}
	if refusal := checkDelegate(st.Identity, want); refusal != nil {
		return none, refusal
	}
	draft, err := r.decide(rev, st, c, ca.Request{
		RequestID: d.RequestID, Actor: by, MayWait: true, Guard: pki.Guard{Enrolls: st.Identity.State == pki.Registered},
	}, false)
	if err != nil {
		return none, err
	}
	return r.issue(context.WithoutCancel(ctx), draft, q)
}

// checkDelegate refuses an identity that is not that of an OCSP delegate. Reserve corrects the attributes of a row that was
// altered, but not its kind.
func checkDelegate(have Identity, want NewIdentity) *pki.Refusal {
	if have.Kind == want.Kind && have.SameAttributes(Identity{Profile: want.Profile, Labels: want.Labels}) {
		return nil
	}
	return pki.Refuse(pki.RuleAccess, "look for the cause: the server registers the identity with the right ones",
		"%s has another kind, profile, labels, names, roles or evidence than an OCSP delegate", have.ID)
}

// Delegated returns the certificate that another server has issued for a request. It returns false if there is none yet.
func (r *Registrar) Delegated(ctx context.Context, d DelegateRequest) (cert ca.Certificate, issued bool, err error) {
	id, err := pki.VAID(r.trustDomain, d.Issuer, d.Server)
	if err != nil {
		return cert, false, err
	}
	c, err := parseCSR(d.CSR)
	if err != nil {
		return cert, false, err
	}
	st, err := r.store.IssuanceState(ctx, IssuanceQuery{Identity: id, Request: d.RequestID, Key: c.keyHash, At: r.clock()})
	if refusal, ok := pki.AsRefusal(err); ok && refusal.Rule == pki.RuleIdentity {
		return cert, false, nil // the other server registers it
	}
	if err != nil || st.Prior == nil {
		return cert, false, err
	}
	cert, err = answered(st.Prior, c.keyHash)
	return cert, err == nil, err
}

// issueFor returns the issuing CA for a certificate of id. A validation authority needs a certificate from the CA whose
// OCSP responses it signs (RFC 6960 §4.2.2.2). For other identities it returns zero, which means the current CA.
func issueFor(id Identity) (pki.IssuerID, error) {
	if id.Kind != pki.VA {
		return pki.IssuerID{}, nil
	}
	return pki.ParseIssuerID(id.Labels[IssuerLabel])
}

// refuseKind returns the refusal of a profile that is not for the kind of the identity.
func refuseKind(id Identity, profile string) error {
	return pki.Refuse(pki.RuleAccess, "give the identity a profile that its kind may hold",
		"profile %s is not for identities of the kind %s", profile, id.Kind)
}
