package grpcapi

import (
	"net/netip"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/ra"
)

// durationOf converts an optional duration. It returns zero for nil, and refuses a duration that is not positive.
func durationOf(d *durationpb.Duration, field string) (time.Duration, error) {
	if d == nil {
		return 0, nil
	}
	if err := d.CheckValid(); err != nil || d.AsDuration() <= 0 {
		return 0, pki.Refuse(pki.RuleLifetime, "leave it unset, or send a positive one", "%s is not a positive duration", field)
	}
	return d.AsDuration(), nil
}

// timeIn converts an optional time. It returns the zero time for nil, and refuses a message that contains the zero
// time.
func timeIn(t *timestamppb.Timestamp, field string) (time.Time, error) {
	if t == nil {
		return time.Time{}, nil
	}
	if err := t.CheckValid(); err != nil || t.AsTime().IsZero() {
		return time.Time{}, pki.Refuse(pki.RuleRequest, "leave it unset, or send a time of the years 1970 and after", "%s is not a time", field)
	}
	return t.AsTime(), nil
}

// timeOut converts a time. It returns nil for the zero time.
func timeOut(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// serialIn converts a serial number of 20 bytes.
func serialIn(b []byte, field string) (pki.Serial, error) {
	serial, err := pki.SerialFromBytes(b)
	if err != nil {
		return serial, pki.Refuse(pki.RuleRequest, "send 20 bytes, big-endian", "%s is not a serial number", field)
	}
	return serial, nil
}

// issuerIn converts the optional ID of an issuing CA. It returns the zero ID if b is empty.
func issuerIn(b []byte) (pki.IssuerID, error) {
	if len(b) == 0 {
		return pki.IssuerID{}, nil
	}
	id, err := pki.IssuerIDFromBytes(b)
	if err != nil {
		return id, pki.Refuse(pki.RuleRequest, "send the 32 bytes that a CertificateChain has, or leave it out", "issuer_id has %d bytes", len(b))
	}
	return id, nil
}

// keyHashIn converts the SHA-256 of a public key.
func keyHashIn(b []byte) (pki.KeyHash, error) {
	h, err := pki.KeyHashFromBytes(b)
	if err != nil {
		return h, pki.Refuse(pki.RuleRequest, "send the SHA-256 of the SubjectPublicKeyInfo, 32 bytes", "key_hash has %d bytes", len(b))
	}
	return h, nil
}

// wireOf returns the protobuf value that table maps to v, or the unspecified value if there is none.
func wireOf[W, V comparable](table map[W]V, v V) W {
	for w, have := range table {
		if have == v {
			return w
		}
	}
	var unspecified W
	return unspecified
}

// kinds maps the kinds of identities in protobuf to those of package pki.
var kinds = map[brevetv1.IdentityKind]pki.Kind{
	brevetv1.IdentityKind_IDENTITY_KIND_DEVICE:               pki.Device,
	brevetv1.IdentityKind_IDENTITY_KIND_WORKLOAD:             pki.Workload,
	brevetv1.IdentityKind_IDENTITY_KIND_OPERATOR:             pki.Operator,
	brevetv1.IdentityKind_IDENTITY_KIND_SERVER:               pki.Server,
	brevetv1.IdentityKind_IDENTITY_KIND_VALIDATION_AUTHORITY: pki.VA,
}

// identityStates maps the states of identities in protobuf to those of package pki.
var identityStates = map[brevetv1.IdentityState]pki.IdentityState{
	brevetv1.IdentityState_IDENTITY_STATE_REGISTERED: pki.Registered,
	brevetv1.IdentityState_IDENTITY_STATE_ENROLLED:   pki.Enrolled,
	brevetv1.IdentityState_IDENTITY_STATE_SUSPENDED:  pki.Suspended,
	brevetv1.IdentityState_IDENTITY_STATE_RETIRED:    pki.Retired,
}

func identityOut(id ra.Identity) *brevetv1.Identity {
	return &brevetv1.Identity{
		Id: id.ID.String(), Kind: wireOf(kinds, id.Kind), Profile: id.Profile, Labels: id.Labels, Names: namesOut(id.DNSNames, id.IPAddresses),
		State: wireOf(identityStates, id.State), CreateTime: timestamppb.New(id.CreatedAt), Revision: int64(id.Revision), //nolint:gosec // revisions count up from 1
		EvidenceSubject: id.Subject.String(), Rule: id.Rule, EnrollmentTerms: termsOut(id.Terms), Roles: rolesOut(id.Roles),
		Recoveries: int32(id.Recoveries), //nolint:gosec // the policy limits it
	}
}

// termsOut converts the terms of an enrollment. It returns nil if there are none.
func termsOut(t pki.Terms) *brevetv1.EnrollmentTerms {
	if t.IsZero() {
		return nil
	}
	out := &brevetv1.EnrollmentTerms{HardwareKey: t.HardwareKey}
	for _, k := range t.Keys {
		out.KeyTypes = append(out.KeyTypes, string(k))
	}
	if t.MaxLifetime > 0 {
		out.MaxLifetime = durationpb.New(t.MaxLifetime)
	}
	return out
}

// roles maps the roles of operators in protobuf to those of package pki.
var roles = map[brevetv1.OperatorRole]pki.Role{
	brevetv1.OperatorRole_OPERATOR_ROLE_ADMIN:     pki.RoleAdmin,
	brevetv1.OperatorRole_OPERATOR_ROLE_REGISTRAR: pki.RoleRegistrar,
	brevetv1.OperatorRole_OPERATOR_ROLE_REVOKER:   pki.RoleRevoker,
	brevetv1.OperatorRole_OPERATOR_ROLE_AUDITOR:   pki.RoleAuditor,
}

func rolesOut(set pki.Roles) []brevetv1.OperatorRole {
	var out []brevetv1.OperatorRole
	for _, role := range set.List() {
		out = append(out, wireOf(roles, role))
	}
	return out
}

// rolesIn converts the roles of an operator.
func rolesIn(list []brevetv1.OperatorRole) (pki.Roles, error) {
	var set pki.Roles
	for _, r := range list {
		role, ok := roles[r]
		if !ok {
			return 0, pki.Refuse(pki.RuleRequest, "use admin, registrar, revoker or auditor", "%s is not a role", r)
		}
		set |= pki.RolesOf(role)
	}
	return set, nil
}

// subjectIn converts the optional subject of evidence of an identity.
func subjectIn(text string) (pki.EvidenceSubject, error) {
	s, err := pki.ParseEvidenceSubject(text)
	if err != nil {
		return s, pki.Refuse(pki.RuleRequest, "leave it empty, or write it as GetIdentity returns it",
			"evidence_subject: %s", err)
	}
	return s, nil
}

func namesOut(dns []string, ips []netip.Addr) []*brevetv1.Name {
	var out []*brevetv1.Name
	for _, n := range dns {
		out = append(out, &brevetv1.Name{Kind: &brevetv1.Name_Dns{Dns: n}})
	}
	for _, ip := range ips {
		out = append(out, &brevetv1.Name{Kind: &brevetv1.Name_Ip{Ip: ip.String()}})
	}
	return out
}

// namesIn converts names for a certificate, and refuses those of a kind that no profile permits.
func namesIn(names []*brevetv1.Name) (dns []string, ips []netip.Addr, err error) {
	for _, n := range names {
		switch k := n.GetKind().(type) {
		case *brevetv1.Name_Dns:
			dns = append(dns, k.Dns)
		case *brevetv1.Name_Ip:
			ip, err := netip.ParseAddr(k.Ip)
			if err != nil {
				return nil, nil, pki.Refuse(pki.RuleNames, "write it like 192.0.2.1 or 2001:db8::1", "%.64q is not an IP address", k.Ip)
			}
			ips = append(ips, ip)
		case *brevetv1.Name_HardwareModule:
			return nil, nil, pki.Refuse(pki.RuleNames, "use DNS names and IP addresses", "no profile permits the name of a hardware module (RFC 4108)")
		case *brevetv1.Name_PermanentIdentifier:
			return nil, nil, pki.Refuse(pki.RuleNames, "use DNS names and IP addresses", "no profile permits a permanent identifier (RFC 4043)")
		default:
			return nil, nil, pki.Refuse(pki.RuleNames, "set dns or ip", "a name is of no kind that this server knows")
		}
	}
	return dns, ips, nil
}

// certificateStates maps the states of certificates in protobuf to those of package pki.
var certificateStates = map[brevetv1.CertificateState]pki.State{
	brevetv1.CertificateState_CERTIFICATE_STATE_GOOD:    pki.Good,
	brevetv1.CertificateState_CERTIFICATE_STATE_HOLD:    pki.Hold,
	brevetv1.CertificateState_CERTIFICATE_STATE_REVOKED: pki.Revoked,
}

func certificateOut(c ra.Certificate) *brevetv1.Certificate {
	out := &brevetv1.Certificate{
		Serial: c.Ref.Serial.Bytes(), IssuerId: c.Ref.Issuer.Bytes(), Profile: c.Profile, Der: c.DER, NotAfter: timestamppb.New(c.NotAfter),
		IssueTime: timestamppb.New(c.IssuedAt), State: wireOf(certificateStates, c.Status.State), Delivered: c.Delivered, InvalidityTime: timeOut(c.InvalidSince),
	}
	if c.Delivered {
		out.Identity, out.KeyHash, out.NotBefore = c.Identity.String(), c.KeyHash.Bytes(), timestamppb.New(c.NotBefore)
	}
	if c.Status.State != pki.Good {
		out.Reason, out.RevokeTime = brevetv1.RevocationReason(c.Status.Reason), timestamppb.New(c.Status.RevokedAt)
	}
	return out
}
