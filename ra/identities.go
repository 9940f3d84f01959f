package ra

import (
	"context"
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

// Limits of one identity.
const (
	maxLabels = 64
	maxNames  = 100 // of DNS names, and of IP addresses
)

// NewIdentity is a request to register an identity.
type NewIdentity struct {
	// Name is a path such as device/42, or a full SPIFFE ID. For an operator it is only the operator's name.
	Name        string
	Kind        pki.Kind
	Profile     string // empty for the profile with the name of the kind
	Labels      map[string]string
	DNSNames    []string
	IPAddresses []netip.Addr
	// Subject is the subject of the evidence with which the identity can be enrolled. If it is zero, the first evidence
	// decides.
	Subject pki.EvidenceSubject
	// Roles are those of an operator, who has one at least. Other identities have none.
	Roles pki.Roles
}

// CreateIdentity registers a device, workload or operator. Identities of Brevet itself are registered with Reserve.
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
		err = pki.Refuse(pki.RuleReserved, "use the kind device, workload or operator", "the server itself registers identities of the kind %s", n.Kind)
	}
	if err != nil {
		return Identity{}, asRefusal(pki.RuleRequest, err)
	}
	return r.register(ctx, id, n, by)
}

// Reserve registers an identity of Brevet itself, or updates its attributes to those in n, from the configuration. No RPC
// calls it.
func (r *Registrar) Reserve(ctx context.Context, id pki.SPIFFEID, n NewIdentity, by pki.Actor) (Identity, error) {
	if !id.Reserved() {
		return Identity{}, fmt.Errorf("%s is not a reserved identity", id)
	}
	have, err := r.register(ctx, id, n, by)
	if refusal, ok := pki.AsRefusal(err); ok && refusal.Rule == pki.RuleIdentityExists {
		want, err := r.identityOf(r.revision(), id, n)
		if err != nil {
			return Identity{}, err
		}
		want.Revision = 0 // update any revision
		return r.store.UpdateIdentity(ctx, want, by, r.clock())
	}
	return have, err
}

// IdentityUpdate is a request to change attributes of an identity.
type IdentityUpdate struct {
	ID pki.SPIFFEID
	// Revision is the revision that the caller has read.
	Revision uint64
	// The new attributes. A nil field leaves the attribute unchanged.
	Profile *string
	Labels  *map[string]string
	Names   *ca.Names
	// Subject ties the identity to the subject of other evidence. The zero subject ties it to the next evidence with which
	// the identity enrolls.
	Subject *pki.EvidenceSubject
	Roles   *pki.Roles
}

// UpdateIdentity changes attributes of a device, workload or operator. If the identity has changed since the revision in
// u, it refuses the update (rule identity.revision).
func (r *Registrar) UpdateIdentity(ctx context.Context, u IdentityUpdate, by pki.Actor) (Identity, error) {
	have, err := r.store.Identity(ctx, u.ID)
	if err != nil {
		return Identity{}, err
	}
	if have.Kind == pki.Server || have.Kind == pki.VA {
		return Identity{}, pki.Refuse(pki.RuleReserved, "change the configuration of the server", "%s is part of the CA itself", have.ID)
	}
	if u.Revision > have.Revision { // unchanged attributes would be taken from an older revision than the caller read
		return Identity{}, have.CheckRevision(u.Revision)
	}
	n := NewIdentity{
		Kind: have.Kind, Profile: have.Profile, Labels: have.Labels, Subject: have.Subject,
		DNSNames: have.DNSNames, IPAddresses: have.IPAddresses, Roles: have.Roles,
	}
	if u.Profile != nil {
		n.Profile = *u.Profile
	}
	if u.Labels != nil {
		n.Labels = *u.Labels
	}
	if u.Names != nil {
		n.DNSNames, n.IPAddresses = u.Names.DNS, u.Names.IPs
	}
	if u.Subject != nil {
		n.Subject = *u.Subject
	}
	if u.Roles != nil {
		n.Roles = *u.Roles
	}
	want, err := r.identityOf(r.revision(), have.ID, n)
	if err != nil {
		return Identity{}, err
	}
	want.Revision = u.Revision
	return r.store.UpdateIdentity(ctx, want, by, r.clock())
}

func (r *Registrar) register(ctx context.Context, id pki.SPIFFEID, n NewIdentity, by pki.Actor) (Identity, error) {
	want, err := r.identityOf(r.revision(), id, n)
	if err != nil {
		return Identity{}, err
	}
	return r.store.CreateIdentity(ctx, Registration{Identity: want}, by)
}

// identityOf returns the identity to register, or a refusal if a revision of the policy does not allow it.
func (r *Registrar) identityOf(rev Revision, id pki.SPIFFEID, n NewIdentity) (Identity, error) {
	p, err := checkSpec(rev, &n)
	if err != nil {
		return Identity{}, err
	}
	if refusal := n.Kind.CheckRoles(n.Roles); refusal != nil {
		return Identity{}, refusal
	}
	if n.Subject.Kind == pki.EvidenceToken {
		return Identity{}, pki.Refuse(pki.RuleRequest, "name the subject of evidence of another kind, such as a TPM",
			"%s cannot be tied to a token, which enrolls an identity only once", id)
	}
	dns, ips, err := CheckNames(n.DNSNames, n.IPAddresses)
	if err != nil {
		return Identity{}, err
	}
	if err := p.CheckOwnNames(id, ca.Names{DNS: dns, IPs: ips}); err != nil {
		return Identity{}, err
	}
	if err := r.ca.CheckNames(id, ca.Names{DNS: dns, IPs: ips}); err != nil {
		return Identity{}, err
	}
	return Identity{
		ID: id, Kind: n.Kind, Profile: n.Profile, Labels: n.Labels, DNSNames: dns, IPAddresses: ips,
		State: pki.Registered, Revision: 1, CreatedAt: r.clock().Truncate(time.Millisecond), Subject: n.Subject, Roles: n.Roles,
	}, nil
}

// checkSpec sets the default profile of a new identity, and checks the profile and the labels. It returns the profile.
func checkSpec(rev Revision, n *NewIdentity) (*ca.Profile, error) {
	if n.Profile == "" {
		n.Profile = n.Kind.String()
	}
	p, err := rev.Profiles.Profile(n.Profile)
	if err != nil {
		return nil, err
	}
	if !p.Permits(n.Kind) {
		return nil, pki.Refuse(pki.RuleAccess, "choose another profile", "profile %s is not for identities of the kind %s", n.Profile, n.Kind)
	}
	return p, checkLabels(n.Labels)
}

// ParseID parses a path, such as device/42, or a full SPIFFE ID. It refuses an ID of another trust domain.
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

// Store returns the store of the Registrar. Callers must only read from it.
func (r *Registrar) Store() Store { return r.store }

// RevokeTokens revokes tokens. It returns the number of those that were open, as TokenInventory.RevokeTokens does.
func (r *Registrar) RevokeTokens(ctx context.Context, v TokenRevocation) (int, error) {
	if err := pki.CheckText("the comment", v.Comment); err != nil {
		return 0, err
	}
	v.At = r.clock()
	return r.store.RevokeTokens(ctx, v)
}

// Tokens returns a page of tokens with their current states. See TokenInventory.Tokens.
func (r *Registrar) Tokens(ctx context.Context, f TokenFilter, after TokenPosition, limit int) ([]ListedToken, TokenPosition, error) {
	return r.store.Tokens(ctx, f, r.clock(), after, limit)
}

// Identities returns a page of identities that match f now. See IdentityStore.Identities.
func (r *Registrar) Identities(ctx context.Context, f IdentityFilter, after pki.SPIFFEID, limit int) ([]Identity, pki.SPIFFEID, error) {
	now := r.clock()
	if err := checkNotRenewedSince(f.NotRenewedSince, now); err != nil {
		return nil, pki.SPIFFEID{}, err
	}
	return r.store.Identities(ctx, f, now, after, limit)
}

func checkLabels(labels map[string]string) error {
	if len(labels) > maxLabels {
		return pki.Refuse(pki.RuleRequest, fmt.Sprintf("use %d at most", maxLabels), "%d labels", len(labels))
	}
	for k, v := range labels {
		if k == "" {
			return pki.Refuse(pki.RuleRequest, "give every label a name", "a label has no name")
		}
		if err := errors.Join(pki.CheckText("a label's name", k), pki.CheckText("a label's value", v)); err != nil {
			return err
		}
	}
	return nil
}

// CheckNames checks the DNS names and IP addresses of an identity, and returns them normalized, sorted and without
// duplicates. DNS names must be valid for registration under IDNA 2008 (RFC 5891 §4), in ASCII, and without wildcards.
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

// hostName reports whether each label of name has 1 to 63 letters, digits and inner hyphens (RFC 1123 §2.1).
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

// readsAsIPv4 reports whether the last label of name is a decimal, octal or hexadecimal number. Browsers and
// inet_aton(3) could parse such a name as an IPv4 address.
func readsAsIPv4(name string) bool {
	label := strings.ToLower(name[strings.LastIndexByte(name, '.')+1:])
	digits, hexadecimal := strings.CutPrefix(label, "0x")
	return (hexadecimal || digits != "") && !strings.ContainsFunc(digits, func(c rune) bool {
		return (c < '0' || c > '9') && (!hexadecimal || c < 'a' || c > 'f')
	})
}

// asRefusal returns err if it is a refusal, and otherwise a refusal with its text.
func asRefusal(rule pki.Rule, err error) error {
	if _, ok := pki.AsRefusal(err); ok {
		return err
	}
	return pki.Refuse(rule, "use a path such as device/42: letters, digits, dots, dashes and underscores between slashes", "%s", err)
}
