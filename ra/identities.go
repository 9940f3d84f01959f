package ra

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/idna"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
)

// Bounds on what one identity can carry.
const (
	maxLabels = 64
	maxNames  = 100 // DNS names, and as many IP addresses
)

// Bounds on how long an enrollment token lives, and how long it does when nobody says.
const (
	DefaultTokenLifetime = time.Hour
	maxTokenLifetime     = 30 * 24 * time.Hour
)

// NewIdentity is a wish to register an identity.
type NewIdentity struct {
	// Name is a path such as device/42 or a full SPIFFE ID; for an operator the name alone.
	Name        string
	Kind        pki.Kind
	Profile     string // empty for the profile that has the kind's name
	Labels      map[string]string
	DNSNames    []string
	IPAddresses []netip.Addr
}

// CreateIdentity registers a device, workload or operator. Brevet's own identities come from Reserve.
func (r *Registrar) CreateIdentity(ctx context.Context, n NewIdentity, by pki.Actor) (Identity, error) {
	var id pki.SPIFFEID
	var err error
	switch n.Kind {
	case pki.Operator:
		if id, err = pki.OperatorID(r.trustDomain, n.Name); err != nil {
			err = pki.Refuse(pki.RuleRequest, "use the name alone, such as alice for brevet/operator/alice: letters, digits, dots, dashes and underscores",
				"%q is not an operator's name", n.Name)
		}
	case pki.Device, pki.Workload:
		id, err = r.ParseID(n.Name)
		if err == nil && id.Reserved() {
			err = pki.Refuse(pki.RuleReserved, "choose a path that does not begin with brevet", "%s is reserved", id)
		}
	default:
		err = pki.Refuse(pki.RuleReserved, "use the kind device, workload or operator", "identities of the kind %s make themselves", n.Kind)
	}
	if err != nil {
		return Identity{}, asRefusal(pki.RuleRequest, err)
	}
	return r.register(ctx, id, n, by)
}

// Reserve registers one of Brevet's own identities, or brings its names up to date with the configuration. Nothing a
// caller from outside sends reaches it.
func (r *Registrar) Reserve(ctx context.Context, id pki.SPIFFEID, n NewIdentity, by pki.Actor) (Identity, error) {
	if !id.Reserved() {
		return Identity{}, fmt.Errorf("%s is not a reserved identity", id)
	}
	have, err := r.register(ctx, id, n, by)
	if refusal, ok := pki.AsRefusal(err); ok && refusal.Rule == pki.RuleIdentityExists {
		want, err := r.identityOf(id, n)
		if err != nil {
			return Identity{}, err
		}
		want.Revision = 0 // whatever it is
		return r.store.UpdateIdentity(ctx, want, by, r.clock())
	}
	return have, err
}

// IdentityUpdate is a request to change attributes of an identity.
type IdentityUpdate struct {
	ID pki.SPIFFEID
	// Revision is the one that the caller read.
	Revision uint64
	// The new attributes; nil for those that stay.
	Profile *string
	Labels  *map[string]string
	Names   *ca.Names
}

// UpdateIdentity changes attributes of a device, workload or operator. It refuses an update of a revision that is not the
// newest (identity.revision).
func (r *Registrar) UpdateIdentity(ctx context.Context, u IdentityUpdate, by pki.Actor) (Identity, error) {
	have, err := r.store.Identity(ctx, u.ID)
	if err != nil {
		return Identity{}, err
	}
	if have.Kind == pki.Server || have.Kind == pki.VA {
		return Identity{}, pki.Refuse(pki.RuleReserved, "change the configuration of the server", "%s is part of the CA itself", have.ID)
	}
	if u.Revision > have.Revision { // what stays is of the revision that was read
		return Identity{}, have.CheckRevision(u.Revision)
	}
	n := NewIdentity{Kind: have.Kind, Profile: have.Profile, Labels: have.Labels, DNSNames: have.DNSNames, IPAddresses: have.IPAddresses}
	if u.Profile != nil {
		n.Profile = *u.Profile
	}
	if u.Labels != nil {
		n.Labels = *u.Labels
	}
	if u.Names != nil {
		n.DNSNames, n.IPAddresses = u.Names.DNS, u.Names.IPs
	}
	want, err := r.identityOf(have.ID, n)
	if err != nil {
		return Identity{}, err
	}
	want.Revision = u.Revision
	return r.store.UpdateIdentity(ctx, want, by, r.clock())
}

func (r *Registrar) register(ctx context.Context, id pki.SPIFFEID, n NewIdentity, by pki.Actor) (Identity, error) {
	want, err := r.identityOf(id, n)
	if err != nil {
		return Identity{}, err
	}
	return r.store.CreateIdentity(ctx, want, by)
}

func (r *Registrar) identityOf(id pki.SPIFFEID, n NewIdentity) (Identity, error) {
	if n.Profile == "" {
		n.Profile = n.Kind.String()
	}
	p, err := r.ca.Profile(n.Profile)
	if err != nil {
		return Identity{}, err
	}
	if !p.Permits(n.Kind) {
		return Identity{}, pki.Refuse(pki.RuleAccess, "choose another profile", "profile %s is not for identities of the kind %s", n.Profile, n.Kind)
	}
	if err := checkLabels(n.Labels); err != nil {
		return Identity{}, err
	}
	dns, ips, err := CheckNames(n.DNSNames, n.IPAddresses)
	if err != nil {
		return Identity{}, err
	}
	if err := p.CheckNames(id, ca.Names{DNS: dns, IPs: ips}); err != nil {
		return Identity{}, err
	}
	if err := r.ca.CheckNames(id, ca.Names{DNS: dns, IPs: ips}); err != nil {
		return Identity{}, err
	}
	return Identity{
		ID: id, Kind: n.Kind, Profile: n.Profile, Labels: n.Labels, DNSNames: dns, IPAddresses: ips,
		State: pki.Registered, Revision: 1, CreatedAt: r.clock().Truncate(time.Millisecond),
	}, nil
}

// ParseID reads a path or a full SPIFFE ID of this trust domain.
func (r *Registrar) ParseID(text string) (pki.SPIFFEID, error) {
	id, err := pki.ParseSPIFFEID(text)
	if !strings.HasPrefix(text, "spiffe:") {
		id, err = pki.SPIFFEIDIn(r.trustDomain, text)
	}
	if err != nil {
		return id, asRefusal(pki.RuleRequest, err)
	}
	if id.TrustDomain() != r.trustDomain {
		return id, pki.Refuse(pki.RuleTrustDomain, "use an identity of spiffe://"+r.trustDomain, "%s is of another trust domain", id)
	}
	return id, nil
}

// Store returns the inventory, for reading.
func (r *Registrar) Store() Store { return r.store }

// CreateToken makes a one-time enrollment token for an identity. The secret is in the answer and nowhere else. A
// lifetime of zero means an hour; at most it is 30 days.
func (r *Registrar) CreateToken(ctx context.Context, identity pki.SPIFFEID, lifetime time.Duration, replace bool, by pki.Actor) (pki.TokenSecret, Token, error) {
	none := pki.TokenSecret{}
	if lifetime == 0 {
		lifetime = DefaultTokenLifetime
	}
	if lifetime < time.Second || lifetime > maxTokenLifetime {
		return none, Token{}, pki.Refuse(pki.RuleLifetime, "choose one second to 30 days", "a token cannot live %s", lifetime)
	}
	id, err := r.store.Identity(ctx, identity)
	if err != nil {
		return none, Token{}, err
	}
	switch {
	case id.State == pki.Suspended:
		return none, Token{}, pki.Refuse(pki.RuleIdentityState, "resume it first (brevet identity resume)", "%s is suspended", id.ID)
	case id.State == pki.Retired:
		return none, Token{}, pki.Refuse(pki.RuleIdentityState, "register another one: this one has ended", "%s is retired", id.ID)
	case id.State == pki.Enrolled && !replace:
		return none, Token{}, pki.Refuse(pki.RuleAlreadyEnrolled, "say --replace to revoke what it has when the token is used", "%s is enrolled already", id.ID)
	}
	var random [32]byte
	_, _ = rand.Read(random[:]) // never fails: crypto/rand ends the process where there is no randomness
	secret, err := pki.TokenSecretFromBytes(random[:])
	if err != nil {
		return none, Token{}, err
	}
	now := r.clock().Truncate(time.Millisecond)
	t := Token{
		ID: secret.ID(), Identity: id.ID, IdentityRevision: id.Revision, Profile: id.Profile, ExpiresAt: now.Add(lifetime),
		Replace: replace, CreatedBy: by, CreatedAt: now,
	}
	t, err = r.store.CreateToken(ctx, t)
	return secret, t, err
}

// RevokeTokens revokes tokens, and returns how many of them could have been used.
func (r *Registrar) RevokeTokens(ctx context.Context, v TokenRevocation) (int, error) {
	if err := pki.CheckText("the comment", v.Comment); err != nil {
		return 0, err
	}
	v.At = r.clock()
	return r.store.RevokeTokens(ctx, v)
}

// Tokens returns a page of tokens, as TokenInventory does, with their states now.
func (r *Registrar) Tokens(ctx context.Context, f TokenFilter, after TokenPlace, limit int) ([]ListedToken, TokenPlace, error) {
	return r.store.Tokens(ctx, f, r.clock(), after, limit)
}

// Identities returns a page of identities, as IdentityStore does, as of now.
func (r *Registrar) Identities(ctx context.Context, f IdentityFilter, after pki.SPIFFEID, limit int) ([]Identity, pki.SPIFFEID, error) {
	return r.store.Identities(ctx, f, r.clock(), after, limit)
}

func checkLabels(labels map[string]string) error {
	if len(labels) > maxLabels {
		return pki.Refuse(pki.RuleRequest, fmt.Sprintf("use %d at most", maxLabels), "%d labels", len(labels))
	}
	for k, v := range labels {
		if k == "" {
			return pki.Refuse(pki.RuleRequest, "give it one", "a label has no name")
		}
		if err := errors.Join(pki.CheckText("a label's name", k), pki.CheckText("a label's value", v)); err != nil {
			return err
		}
	}
	return nil
}

// CheckNames normalises and checks the names that stand beside a SPIFFE ID: DNS names as IDNA 2008 has them for look-ups, in ASCII, without wildcards.
func CheckNames(dns []string, ips []netip.Addr) ([]string, []netip.Addr, error) {
	if len(dns) > maxNames || len(ips) > maxNames {
		return nil, nil, pki.Refuse(pki.RuleNames, fmt.Sprintf("use %d at most", maxNames), "%d DNS names and %d IP addresses", len(dns), len(ips))
	}
	var names []string
	for _, n := range dns {
		if readsAsIPv4(n) {
			return nil, nil, pki.Refuse(pki.RuleNames, "grant an address with --ip, in its usual form", "clients read %q as an IP address", n)
		}
		ascii, err := idna.Registration.ToASCII(strings.ToLower(n))
		if err != nil || ascii == "" || ascii != strings.ToLower(n) || len(ascii) > 253 || !hostName(ascii) {
			return nil, nil, pki.Refuse(pki.RuleNames, "use names such as pump-1.fleet.example, international ones as xn--…", "%q is not a host name", n)
		}
		names = append(names, ascii)
	}
	var addrs []netip.Addr
	for _, a := range ips {
		if !a.IsValid() || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() {
			return nil, nil, pki.Refuse(pki.RuleNames, "use a unicast address without a zone", "%s is not the address of a machine", a)
		}
		addrs = append(addrs, a.Unmap())
	}
	slices.Sort(names)
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(names), slices.Compact(addrs), nil
}

// hostName checks letters, digits and hyphens in labels of 1 to 63 octets (RFC 1123 §2.1).
func hostName(name string) bool {
	for _, label := range strings.Split(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		if strings.ContainsFunc(label, func(c rune) bool {
			return (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-'
		}) {
			return false
		}
	}
	return true
}

// readsAsIPv4 reports whether clients could read a name as an IPv4 address, in a form of inet_aton(3) or of browsers, which are
// laxer: the last label is a decimal, octal or hexadecimal number.
func readsAsIPv4(name string) bool {
	label := strings.ToLower(name[strings.LastIndexByte(name, '.')+1:])
	digits, hexadecimal := strings.CutPrefix(label, "0x")
	return (hexadecimal || digits != "") && !strings.ContainsFunc(digits, func(c rune) bool {
		return (c < '0' || c > '9') && (!hexadecimal || c < 'a' || c > 'f')
	})
}

func asRefusal(rule pki.Rule, err error) error {
	if _, ok := pki.AsRefusal(err); ok {
		return err
	}
	return pki.Refuse(rule, "use a path such as device/42: letters, digits, dots, dashes and underscores between slashes", "%s", err)
}
