package rules_test

import (
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/translog"
)

// TestReplayActsAsTheEntryReads checks that an entry records something only if its action and outcome say so to a reader
// of the log.
func TestReplayActsAsTheEntryReads(t *testing.T) {
	id := func(path string) pki.SPIFFEID {
		t.Helper()
		id, err := pki.SPIFFEIDIn("fleet.example", path)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	attributes := func(kind pki.Kind) translog.Event {
		return &translog.IdentityAttributes{Kind: kind, Profile: "device", Revision: 1}
	}
	issuer, _ := pki.IssuerIDFromBytes(make([]byte, 32))
	for _, c := range []struct {
		name  string
		entry translog.Entry
		want  int // operations; -1 for an error
	}{
		{"a device", translog.Entry{Action: translog.IdentityRegistered, Outcome: translog.Done, Identity: id("device/1"), Event: attributes(pki.Device)}, 1},
		{"an operator", translog.Entry{Action: translog.IdentityRegistered, Outcome: translog.Done, Identity: id("brevet/operator/alice"), Event: attributes(pki.Operator)}, 1},
		{"the server", translog.Entry{Action: translog.IdentityRegistered, Outcome: translog.Done, Identity: id("brevet/server"), Event: attributes(pki.Server)}, 1},
		{"a refusal", translog.Entry{Action: translog.RequestRefused, Outcome: translog.Refused, Event: &translog.Refusal{Rule: "csr.invalid"}}, 0},
		{"a duplicate serial number", translog.Entry{Action: translog.CertificateAbandoned, Outcome: translog.Refused, Event: &translog.AbandonedCertificates{Duplicate: pki.CertRef{Issuer: issuer, Serial: serial(t)}}}, 1},

		{"a policy", translog.Entry{Action: translog.PolicyApplied, Outcome: translog.Done, Event: &translog.AppliedPolicy{Revision: 1}}, 1},
		{"a policy that was refused", translog.Entry{Action: translog.PolicyApplied, Outcome: translog.Refused, Event: &translog.AppliedPolicy{Revision: 1}}, -1},
		{"refused, but registered", translog.Entry{Action: translog.IdentityRegistered, Outcome: translog.Refused, Identity: id("device/1"), Event: attributes(pki.Device)}, -1},
		{"registered by another action", translog.Entry{Action: translog.CRLPublished, Outcome: translog.Done, Identity: id("device/1"), Event: attributes(pki.Device)}, -1},
		{"a refusal that was done", translog.Entry{Action: translog.RequestRefused, Outcome: translog.Done, Event: &translog.Refusal{Rule: "csr.invalid"}}, -1},
		{"an operator on a device's path", translog.Entry{Action: translog.IdentityRegistered, Outcome: translog.Done, Identity: id("device/1"), Event: attributes(pki.Operator)}, -1},
		{"a device on an operator's path", translog.Entry{Action: translog.IdentityRegistered, Outcome: translog.Done, Identity: id("brevet/operator/alice"), Event: attributes(pki.Device)}, -1},
		{"a server on an operator's path", translog.Entry{Action: translog.IdentityUpdated, Outcome: translog.Done, Identity: id("brevet/operator/alice"), Event: attributes(pki.Server)}, -1},
		{"no event", translog.Entry{Action: translog.IdentityRegistered, Outcome: translog.Done, Identity: id("device/1")}, -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.entry.Time = time.Unix(1_800_000_000, 0)
			ops, err := rules.Replay(1, c.entry)
			if got := len(ops); c.want < 0 && err == nil || c.want >= 0 && (err != nil || got != c.want) {
				t.Errorf("Replay returned %d operations, %v; want %d", got, err, c.want)
			}
		})
	}
}

func serial(t *testing.T) pki.Serial {
	t.Helper()
	b := make([]byte, pki.SerialSize)
	b[0] = 1
	s, err := pki.SerialFromBytes(b)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
