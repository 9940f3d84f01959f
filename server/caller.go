package server

import (
	"context"
	"crypto/x509"
	"time"

	"google.golang.org/grpc/peer"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
)

// caller is who makes a call, once the interceptor has verified the certificate.
type caller struct {
	id  pki.SPIFFEID
	ref pki.CertRef
	key pki.KeyHash
	// past says that the certificate is over, revoked, superseded or not on record. Who may have its key by now is no reason to keep the
	// identity from calling: the log names it, and the call counts for its address.
	past bool
}

func (c caller) actor() pki.Actor { return pki.ActorCaller(c.id, c.ref) }

type callerKey struct{}

// callerOf returns the verified caller of a call; it is zero where the table lets anybody call.
func callerOf(ctx context.Context) caller {
	c, _ := ctx.Value(callerKey{}).(caller)
	return c
}

// statuses knows the status of every certificate that may call: a responder's memory.
type statuses interface {
	Status(ref pki.CertRef) (pki.Status, bool)
}

// identityRecords reads the identity of a caller as it is committed at the time of the call. It returns a pki.Refusal if
// there is none. It is safe for concurrent use.
type identityRecords interface {
	Identity(ctx context.Context, id pki.SPIFFEID) (ra.Identity, error)
}

// gate lets callers in, or refuses them with a typed error.
type gate struct {
	trustDomain   string
	roots         *x509.CertPool
	intermediates *x509.CertPool
	statuses      statuses
	identities    identityRecords
	clock         func() time.Time
	vouched       vouched
}

// authorize checks a call when its message is used: what enter checks, and for operators that their identity is
// enrolled, whatever the certificate says. Renew checks the identity itself, in the read that it decides by.
func (g *gate) authorize(ctx context.Context, method string) (context.Context, error) {
	ctx, err := g.enter(ctx, method)
	if need := access[method]; err != nil || need != operators && need != identity {
		return ctx, err
	}
	id, err := g.identities.Identity(ctx, callerOf(ctx).id)
	if err != nil {
		return ctx, err
	}
	if refusal := id.ID.CheckEnrolled(id.State); refusal != nil {
		return ctx, refusal
	}
	return ctx, nil
}

// enter checks one call against the table and, where that asks for it, the caller's certificate. It reads memory alone.
// The context that it returns knows who calls, beside a refusal too where the certificate says it.
func (g *gate) enter(ctx context.Context, method string) (context.Context, error) {
	need := access[method]
	if need == anybody {
		return ctx, nil
	}
	if need == nobody {
		return ctx, errUnserved
	}
	c, err := g.identify(ctx, need == renewing)
	if err == nil && need == operators && !c.isOperator() {
		err = pki.Refuse(pki.RuleAccess, "call with an operator's certificate", "%s is not an operator", c.id)
	}
	return context.WithValue(ctx, callerKey{}, c), err
}

// errUnserved answers calls that are not in the table.
var errUnserved = pki.Refuse(pki.RuleMethod, "call what proto/brevet/v1 has, or a server of the version that has it", "this server has no such call")

func (g *gate) identify(ctx context.Context, renewing bool) (caller, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return caller{}, pki.Unauthenticated()
	}
	info, ok := p.AuthInfo.(clientInfo)
	if !ok || info.leaf == nil {
		return caller{}, pki.Unauthenticated()
	}
	return g.verify(info, renewing)
}

// verify checks chain, time, purpose, identity and revocation of a client's certificate (RFC 5280 §6). The TLS
// handshake has proved that the client holds its key. The caller beside a refusal is who it is all the same; it is zero
// where the certificate proves nothing, and did not in its time. For a renewal a superseded certificate passes too: whether it may have an answer, and
// it never has more, is the registration authority's to say.
func (g *gate) verify(client clientInfo, renewing bool) (caller, error) {
	leaf, now := client.leaf, g.clock()
	if refusal := pki.CheckValidity(leaf.NotBefore, leaf.NotAfter, now); refusal != nil {
		return g.pastCaller(client, leaf.NotAfter), refusal
	}
	v, err := g.voucherOf(client, now)
	if err != nil {
		return caller{}, err
	}
	c := v.caller
	st, known := g.statuses.Status(c.ref)
	switch {
	case !known:
		c.past = true
		return c, c.ref.NotOnRecord()
	case renewing && st.State == pki.Revoked && st.Reason == pki.Superseded:
		c.past = true
	case st.State != pki.Good:
		c.past = true
		return c, c.ref.CheckStatus(st)
	}
	return c, nil
}

// pastCaller is who the certificate proves to call at a time when it is valid; zero where it proves nothing then.
func (g *gate) pastCaller(client clientInfo, at time.Time) caller {
	v, _ := g.voucherOf(client, at)
	v.caller.past = true
	return v.caller
}

// note records a refusal, in the log if the caller is known, and returns the error.
func (s *Server) note(ctx context.Context, err error) error {
	c := callerOf(ctx)
	return s.auditor.Record(ctx, c.actor(), c.id, err)
}
