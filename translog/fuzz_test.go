package translog

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// FuzzParseEntry checks that an entry that was decoded and encoded again has the same meaning.
func FuzzParseEntry(f *testing.F) {
	serial, err := pki.ParseSerial("0102")
	if err != nil {
		f.Fatal(err)
	}
	issuer, err := pki.IssuerIDFromBytes(bytes.Repeat([]byte{0xca}, 32))
	if err != nil {
		f.Fatal(err)
	}
	ref := pki.CertRef{Issuer: issuer, Serial: serial}
	for _, e := range []Entry{
		{Time: time.Unix(1, 0), Action: CertificateIssued, Outcome: Done, Event: &Refusal{Rule: "a", Detail: "b"}},
		{Action: CertificateRevoked, Outcome: Refused, Changes: []pki.StatusChange{{Ref: ref, Status: pki.Status{State: pki.Revoked, Version: 2}}}},
		{
			Actor: pki.ActorCommand("test"), Action: CertificateIssued, Outcome: Done,
			Changes: []pki.StatusChange{{Ref: ref, Status: pki.Status{State: pki.Good, Version: 1}, Fingerprint: bytes.Repeat([]byte{0xf1}, 32)}},
			Event: &IssuedCertificate{
				Profile: "device", Key: pki.HashSPKI(nil), NotBefore: time.Unix(0, 0), IssueTime: time.Unix(1, 0), Predecessor: serial, Enrolls: true,
				Evidence: IssuanceEvidence{Pieces: []EvidenceDigest{{pki.EvidenceToken, Hash{1}}}, Rule: "a", Policy: 2, Subject: pki.EvidenceSubject{Kind: pki.EvidenceToken}},
				Terms:    pki.Terms{HardwareKey: true, Keys: []pki.KeyType{pki.P256}, MaxLifetime: time.Hour},
			},
		},
		{Action: RequestRefused, Outcome: Refused, Event: &Refusal{
			Rule: pki.RulePolicy, Evidence: IssuanceEvidence{Pieces: []EvidenceDigest{{pki.EvidenceX5C, Hash{1}}, {Kind: pki.EvidenceToken}}},
		}},
		{Action: PolicyApplied, Outcome: Done, Event: &AppliedPolicy{Revision: 1, Comment: "b"}},
	} {
		encoded, err := e.Marshal()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(encoded)
	}
	f.Add([]byte{0xff})
	f.Fuzz(func(t *testing.T, encoded []byte) {
		e, err := ParseEntry(encoded)
		if err != nil {
			return
		}
		first, err := e.Marshal()
		if err != nil {
			return // the entry changes no certificate, or is too large: Marshal never wrote it
		}
		again, err := ParseEntry(first)
		if err != nil {
			t.Fatalf("%+v cannot be encoded and decoded: %v", e, err)
		}
		if second, err := again.Marshal(); err != nil || !bytes.Equal(first, second) {
			t.Fatalf("%x becomes %x, %v", first, second, err)
		}
	})
}

// FuzzRead checks that an archive is read up to the end of its verified batches, and that the rest is a typed error.
func FuzzRead(f *testing.F) {
	whole := header()
	records := extend(Head{}, 6)
	for _, batch := range [][]Sequenced{records[:1], records[1:3], records[3:]} {
		whole = appendBatch(whole, batch)
	}
	f.Add(whole)
	f.Add(whole[:len(whole)-5])
	f.Add(append(bytes.Clone(whole), make([]byte, 100)...))
	f.Add(header())
	f.Add(appendBatch(header(), []Sequenced{{Index: 1, Entry: make([]byte, 40)}}))
	f.Fuzz(func(t *testing.T, archive []byte) {
		seen := Head{}
		head, err := Read(bytes.NewReader(archive), func(s Sequenced) error {
			if s.Index != seen.Size+1 || s.Chain != Chain(seen.Chain, s.Entry) {
				t.Fatalf("record %d follows record %d", s.Index, seen.Size)
			}
			seen = Head{Size: s.Index, Chain: s.Chain}
			return nil
		})
		if head != seen {
			t.Fatalf("read up to %d, but the head is %d", seen.Size, head.Size)
		}
		var torn *TornError
		var corrupt *CorruptError
		if err != nil && !errors.As(err, &torn) && !errors.As(err, &corrupt) && !errors.Is(err, ErrNotArchive) {
			t.Fatalf("%v has an unexpected type", err)
		}
	})
}
