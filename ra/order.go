package ra

import (
	"context"
	"encoding/asn1"
	"net/netip"
	"slices"
	"strings"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
)

// Order is what an ACME order asks for, and who may decide about it. It is a part of a Claim.
type Order struct {
	// ID is zero for an order that does not exist yet.
	ID    pki.RequestID
	Names ca.Names // of the certificate; at least one
	// Profile is the profile of the certificate. It is empty for the first one that the rule allows.
	Profile string
	// Rule is the name of the only rule of the policy that may decide. It is empty if any rule may.
	Rule string
}

// texts returns the names as texts.
func (o *Order) texts() []string {
	all := slices.Clone(o.Names.DNS)
	for _, ip := range o.Names.IPs {
		all = append(all, ip.String())
	}
	return all
}

// hasWildcard reports whether a name is a wildcard.
func (o *Order) hasWildcard() bool {
	return slices.ContainsFunc(o.Names.DNS, func(n string) bool { return strings.HasPrefix(n, "*") })
}

// OrderRequest asks for the certificate of an ACME order.
type OrderRequest struct {
	// Order is the ID of the order, and also the request ID.
	Order pki.RequestID
	CSR   []byte // PKCS #10, DER
}

// CheckOrder checks an order before its names are validated. The alternatives are what validating them could prove: they
// differ in the facts only. CheckOrder returns the profile of the certificate, and which alternatives would lead to one.
// If none would, it returns a refusal. It changes nothing.
func (r *Registrar) CheckOrder(ctx context.Context, alternatives []Claim) (profile string, allowed []bool, err error) {
	rev := r.revision()
	allowed = make([]bool, len(alternatives))
	var g Grant
	var refusal error
	for i, claim := range alternatives {
		order := *claim.Order
		if profile != "" {
			order.Profile = profile
		}
		claim.Order = &order
		granted, p, err := r.grantOrder(rev, Claims{{pki.EvidenceACME, claim}})
		if err != nil {
			refusal = err
			continue
		}
		g, profile, allowed[i] = granted, p, true
	}
	if profile == "" {
		return "", nil, refusal
	}
	names := alternatives[0].Order.Names
	p, err := rev.Profiles.Profile(profile)
	if err == nil {
		err = p.CheckNames(g.Identity, names)
	}
	if err == nil {
		err = r.ca.CheckNames(g.Identity, names)
	}
	if err != nil {
		return "", nil, err
	}
	st, _, err := r.stateForEnroll(ctx, rev, IssuanceQuery{Identity: g.Identity, Subject: g.Subject, At: r.clock()}, g)
	if err == nil {
		err = checkOrderIdentity(st, g)
	}
	if err == nil && !p.Permits(st.Identity.Kind) {
		err = refuseKind(st.Identity, profile)
	}
	return profile, allowed, err
}

// Order issues the certificate of an ACME order. An identity that is only registered becomes enrolled. An enrolled
// identity gets an additional certificate and keeps the others.
//
// The certificate and the order's status are recorded in one transaction. So concurrent and repeated requests for one
// order lead to one certificate. A repeat with the same key returns it.
func (r *Registrar) Order(ctx context.Context, o OrderRequest) (ca.Certificate, error) {
	a, cert, err := r.order(ctx, o)
	return cert, r.auditor.RecordEvidence(ctx, a.by, a.id, a.evidence, err)
}

func (r *Registrar) order(ctx context.Context, o OrderRequest) (a attempt, cert ca.Certificate, err error) {
	c, malformed := readCSR(o.CSR)
	rev := r.revision()
	authenticator, err := rev.authenticator(pki.EvidenceACME)
	if err != nil {
		return a, cert, err
	}
	evidence := pki.Evidence{Kind: pki.EvidenceACME, Value: o.Order.Bytes()}
	claim, err := authenticator.Identify(ctx, Presented{
		Evidence: evidence.Value, Request: o.Order, Key: c.keyHash, At: r.clock(),
	})
	claims := Claims{{pki.EvidenceACME, claim}}
	a = attempted(EnrollRequest{Evidence: []pki.Evidence{evidence}}, claims)
	if err == nil {
		err = malformed
	}
	if err == nil {
		err = c.checkOrder(claim.Order)
	}
	if err == nil {
		err = c.verify()
	}
	if err != nil {
		return a, cert, err
	}
	g, profile, err := r.grantOrder(rev, claims)
	a.id, a.evidence = g.Identity, claims.evidence(g)
	if err != nil {
		return a, cert, err
	}
	done, err := r.perIdentity.take(ctx, g.Identity)
	if err != nil {
		return a, cert, err
	}
	defer done()
	cert, err = repeatStale(func() (ca.Certificate, error) { return r.orderAs(ctx, rev, g, profile, claims, c) })
	return a, cert, err
}

// orderAs makes every check that can refuse the request before it changes anything, as enrollAs does.
func (r *Registrar) orderAs(ctx context.Context, rev Revision, g Grant, profile string, claims Claims, c csr) (ca.Certificate, error) {
	none, order := ca.Certificate{}, claims[0].Order
	p, err := rev.Profiles.Profile(profile)
	if err != nil {
		return none, err
	}
	guard := pki.Guard{Order: pki.Order{
		ID: order.ID, Names: pki.DigestNames(g.Identity, order.texts()), MaxUnexpired: orderFactor * p.MaxUnexpired(),
	}}
	q := IssuanceQuery{
		Identity: g.Identity, Request: order.ID, Key: c.keyHash, At: r.clock(), MaxUnexpired: rev.Profiles.MaxUnexpired(),
		Subject: g.Subject, Order: guard.Order,
	}
	st, register, err := r.stateForEnroll(ctx, rev, q, g)
	if err != nil {
		return none, err
	}
	if st.Prior != nil {
		return answered(st.Prior, c.keyHash)
	}
	if st.OrderRefusal != nil {
		return none, st.OrderRefusal
	}
	if err := checkOrderIdentity(st, g); err != nil {
		return none, err
	}
	id := st.Identity // what the certificate contains, of an identity that keeps its record
	id.Profile, id.DNSNames, id.IPAddresses = profile, order.Names.DNS, order.Names.IPs
	if id.State == pki.Registered {
		guard.Enrolls, guard.Subject, guard.Terms = true, g.Subject, g.terms()
	} else if id.Terms, err = id.Terms.And(g.terms()); err != nil {
		return none, err
	}
	st.Identity = id
	d, err := r.decide(rev, st, c, ca.Request{
		RequestID: order.ID, Actor: claims.actor(), Guard: guard, Evidence: claims.evidence(g),
	}, false)
	if err != nil {
		return none, err
	}
	undo, err := g.take()
	if err != nil {
		return none, err
	}
	// From here on, a canceled request does not stop the work.
	ctx = context.WithoutCancel(ctx)
	cert, err := none, error(nil)
	if register != nil {
		_, err = r.store.CreateIdentity(ctx, *register, claims.actor())
	}
	if err == nil {
		cert, err = r.issue(ctx, d, q)
	}
	if err != nil {
		undo()
	}
	return cert, err
}

// checkOrderIdentity refuses an order for an identity that may not have certificates, or is not tied to the subject of
// the order. An identity that is enrolled without a subject belongs to another device.
func checkOrderIdentity(st IssuanceState, g Grant) error {
	if st.SubjectRefusal != nil {
		return st.SubjectRefusal
	}
	id := st.Identity
	if id.State == pki.Enrolled && !g.Subject.IsZero() && id.Subject != g.Subject {
		return id.ID.EvidenceConflict()
	}
	if refusal := id.ID.CheckMayHold(id.State); refusal != nil {
		return refusal
	}
	return nil
}

// grantOrder returns what the policy grants for an order, and the profile of the certificate.
func (r *Registrar) grantOrder(rev Revision, claims Claims) (Grant, string, error) {
	const hint = "request names that the policy allows, or ask the operator for another external key or rule"
	claim := claims[0]
	order := claim.Order
	if claim.Identity.Reserved() {
		return Grant{Identity: claim.Identity}, "", pki.Refuse(pki.RuleReserved, "use an account of a device or workload",
			"%s cannot have certificates by ACME", claim.Identity)
	}
	if claim.Identity.IsZero() && (len(order.texts()) != 1 || order.hasWildcard()) {
		return Grant{}, "", pki.Refuse(pki.RuleACMEIdentifier,
			"request one name in each order, and no wildcard; or use an account whose external key names an identity",
			"the identity is formed from the name of the order, which has %d names or a wildcard", len(order.texts()))
	}
	g, err := r.grant(rev, claims, "")
	if err != nil {
		return g, "", err
	}
	if order.hasWildcard() && !g.Wildcards {
		return g, "", pki.Refuse(pki.RuleACMEIdentifier, hint, "rule %s allows no wildcards", g.Rule)
	}
	if len(g.Profiles) == 0 {
		return g, "", pki.Refuse(pki.RuleACMEProfile, hint, "rule %s allows no profile for orders", g.Rule)
	}
	profile := order.Profile
	if profile == "" {
		profile = g.Profiles[0]
	}
	if !slices.Contains(g.Profiles, profile) {
		return g, "", pki.Refuse(pki.RuleACMEProfile, "request one of "+strings.Join(g.Profiles, ", ")+", or none",
			"rule %s does not allow the profile %.60q", g.Rule, profile)
	}
	return g, profile, nil
}

// ignoredInOrders are extensions that ACME clients request and that the profile decides: the subject key identifier, key
// usage, basic constraints and extended key usage.
var ignoredInOrders = []asn1.ObjectIdentifier{oidSubjectKeyID, {2, 5, 29, 15}, {2, 5, 29, 19}, {2, 5, 29, 37}}

// checkOrder refuses a CSR whose names are not exactly those of an order (RFC 8555 section 7.4). The names can be in the
// common name, in the subject alternative name, or in both. Other attributes of the subject have no effect.
func (c csr) checkOrder(order *Order) error {
	refuse := func(detail string, args ...any) error {
		return pki.Refuse(pki.RuleCSRContent, "request exactly the names of the order in the CSR, and no other extensions", detail, args...)
	}
	for _, e := range c.request.Extensions {
		isIgnored := slices.ContainsFunc(ignoredInOrders, e.Id.Equal)
		if !isIgnored && !e.Id.Equal(oidSubjectAltName) {
			return refuse("the request asks for the extension %s", e.Id)
		}
		if !isIgnored && !knownNames(e.Value) {
			return refuse("the request asks for a kind of name that is never granted")
		}
	}
	if len(c.request.URIs)+len(c.request.EmailAddresses) > 0 {
		return refuse("the request asks for a URI or an email address")
	}
	var asked []string
	for _, n := range c.request.Subject.Names {
		if text, ok := n.Value.(string); ok && n.Type.Equal(ca.OIDCommonName) {
			asked = append(asked, commonName(text))
		}
	}
	for _, n := range c.request.DNSNames {
		asked = append(asked, strings.ToLower(n))
	}
	for _, ip := range c.request.IPAddresses {
		addr, _ := netip.AddrFromSlice(ip)
		asked = append(asked, addr.Unmap().String())
	}
	slices.Sort(asked)
	asked = slices.Compact(asked)
	want := order.texts()
	slices.Sort(want)
	for _, n := range asked {
		if _, found := slices.BinarySearch(want, n); !found {
			return refuse("the request asks for %.300q, which is not a name of the order", n)
		}
	}
	if len(asked) != len(want) {
		return refuse("the request asks for %d names, and the order has %d", len(asked), len(want))
	}
	return nil
}

// commonName returns the name that a TLS client would read in a common name, in the form of a name of an order.
func commonName(text string) string {
	if addr, err := netip.ParseAddr(text); err == nil {
		return addr.Unmap().String()
	}
	return strings.ToLower(text)
}
