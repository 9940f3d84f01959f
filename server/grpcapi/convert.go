package grpcapi

import (
	"net/netip"
	"strconv"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/ra"
)

// maxPage and defaultPage bound a page of a list.
const (
	maxPage     = 1000
	defaultPage = 100
)

func pageSize(n int32) (int, error) {
	switch {
	case n == 0:
		return defaultPage, nil
	case n < 0 || n > maxPage:
		return 0, pki.Refuse(pki.RuleRequest, "use 1 to 1000, or 0 for 100", "the page size is %d", n)
	}
	return int(n), nil
}

// cursorIn reads the token of a page; empty is the first one.
func cursorIn(text string) (ra.Cursor, error) {
	if text == "" {
		return 0, nil
	}
	from, err := strconv.ParseInt(text, 10, 64)
	if err != nil || from <= 0 {
		return 0, pki.Refuse(pki.RuleRequest, "send the next_page_token of the page before", "the page token is not of its form")
	}
	return ra.Cursor(from), nil
}

// durationOf reads an optional duration: nil is zero, and zero or less is refused.
func durationOf(d *durationpb.Duration, field string) (time.Duration, error) {
	if d == nil {
		return 0, nil
	}
	if err := d.CheckValid(); err != nil || d.AsDuration() <= 0 {
		return 0, pki.Refuse(pki.RuleLifetime, "leave it unset, or send a positive one", "%s is not a positive duration", field)
	}
	return d.AsDuration(), nil
}

// timeIn reads an optional time: nil is the zero time, which is refused as such.
func timeIn(t *timestamppb.Timestamp, field string) (time.Time, error) {
	if t == nil {
		return time.Time{}, nil
	}
	if err := t.CheckValid(); err != nil || t.AsTime().IsZero() {
		return time.Time{}, pki.Refuse(pki.RuleRequest, "leave it unset, or send a time of the years 1970 and after", "%s is not a time", field)
	}
	return t.AsTime(), nil
}

// timeOut is nil for the zero time.
func timeOut(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func identityOut(id ra.Identity) *brevetv1.Identity {
	out := &brevetv1.Identity{
		Id: id.ID.String(), Kind: id.Kind.String(), Profile: id.Profile, Labels: id.Labels, DnsNames: id.DNSNames,
		State: id.State.String(), CreatedAt: timestamppb.New(id.CreatedAt),
	}
	for _, ip := range id.IPAddresses {
		out.IpAddresses = append(out.IpAddresses, ip.String())
	}
	return out
}

func addressesIn(texts []string) ([]netip.Addr, error) {
	addrs := make([]netip.Addr, 0, len(texts))
	for _, t := range texts {
		a, err := netip.ParseAddr(t)
		if err != nil {
			return nil, pki.Refuse(pki.RuleNames, "write it like 192.0.2.1 or 2001:db8::1", "%.64q is not an IP address", t)
		}
		addrs = append(addrs, a)
	}
	return addrs, nil
}

var stateOut = map[pki.State]brevetv1.CertificateState{
	pki.Good:    brevetv1.CertificateState_CERTIFICATE_STATE_GOOD,
	pki.Hold:    brevetv1.CertificateState_CERTIFICATE_STATE_HOLD,
	pki.Revoked: brevetv1.CertificateState_CERTIFICATE_STATE_REVOKED,
}

func certificateOut(c ra.Certificate) *brevetv1.Certificate {
	out := &brevetv1.Certificate{
		Serial: c.Ref.Serial.String(), Issuer: c.Ref.Issuer.String(), Profile: c.Profile, Certificate: c.DER,
		NotAfter: timestamppb.New(c.NotAfter), State: stateOut[c.Status.State], Released: c.Delivered,
		InvalidSince: timeOut(c.InvalidSince),
	}
	if c.Delivered {
		out.Identity, out.KeyHash, out.NotBefore = c.Identity.String(), c.KeyHash.String(), timestamppb.New(c.NotBefore)
	}
	if c.Status.State != pki.Good {
		out.Reason, out.RevokedAt = c.Status.Reason.String(), timestamppb.New(c.Status.RevokedAt)
	}
	return out
}
