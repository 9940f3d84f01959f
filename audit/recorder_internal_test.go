package audit

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// memoryStore is a Store in memory.
type memoryStore struct {
	mu      sync.Mutex
	entries []string
	fail    error
}

func (b *memoryStore) Refused(_ context.Context, r Refusal) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fail != nil {
		return b.fail
	}
	b.entries = append(b.entries, r.Identity.String()+r.kinds()+" "+r.Why.Detail)
	return nil
}

func (b *memoryStore) all() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]string(nil), b.entries...)
}

func sourceID(t *testing.T, n int) pki.SPIFFEID {
	t.Helper()
	id, err := pki.SPIFFEIDIn("fleet.example", fmt.Sprintf("device/%d", n))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// of returns the refusal of a request of an identity.
func of(id pki.SPIFFEID, why *pki.Refusal) Refusal {
	return Refusal{By: pki.ActorIdentity(id), Identity: id, Why: why}
}

func TestRepeatedRefusalsAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, output := &memoryStore{}, &strings.Builder{}
		r := New(b, time.Now, slog.New(slog.NewTextHandler(output, nil)))
		loud, quiet := sourceID(t, 1), sourceID(t, 2)
		why := pki.Refuse(pki.RuleRevoked, "ask an operator", "revoked")
		for range 1000 {
			if err := r.write(t.Context(), of(loud, why)); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.write(t.Context(), of(quiet, why)); err != nil {
			t.Fatal(err)
		}
		if n := len(b.all()); n != 11 {
			t.Errorf("%d entries at once, want ten for the repeating source and one for the other", n)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		all := b.all()
		if len(all) != 12 || !strings.Contains(all[11], "990 more refusals") {
			t.Errorf("%d entries after the window, the last %q; want one with the count of 990", len(all), all[len(all)-1])
		}
		if n := strings.Count(output.String(), "\n"); n != 12 || !strings.Contains(output.String(), "count=990") {
			t.Errorf("%d lines are logged, want one for each entry: %s", n, output)
		}
		if len(r.sources) != 0 {
			t.Errorf("%d sources are still in memory", len(r.sources))
		}
		if err := r.write(t.Context(), of(loud, why)); err != nil || len(b.all()) != 13 {
			t.Errorf("no new window has started: %v, %d entries", err, len(b.all()))
		}
		r.Close(context.Background())
	})
}

// Refusals of an unknown caller without evidence are limited in the operational log like those of other sources, and
// are not in the audit log.
func TestUnknownCallersHaveNoEntries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, output := &memoryStore{}, &strings.Builder{}
		r := New(b, time.Now, slog.New(slog.NewTextHandler(output, nil)))
		for range 1000 {
			if err := r.write(t.Context(), Refusal{Why: pki.Refuse(pki.RuleToken, "ask an operator", "unknown")}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if all := b.all(); len(all) != 0 {
			t.Errorf("the audit log has %q", all)
		}
		if n := strings.Count(output.String(), "\n"); n != 11 || !strings.Contains(output.String(), "count=990") {
			t.Errorf("%d lines, want ten and one with the count: %s", n, output)
		}
	})
}

// Callers whose identity is not known are one source for each kind of evidence and each rule, however many they are.
// Their entries have no detail, and neither has an entry about what evidence of a known identity contains.
func TestRefusedEvidenceIsLimitedByKind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, output := &memoryStore{}, &strings.Builder{}
		r := New(b, time.Now, slog.New(slog.NewTextHandler(output, nil)))
		record := func(n int, id pki.SPIFFEID, rule pki.Rule, kinds ...pki.EvidenceKind) {
			var e pki.EvidenceRecord
			for _, k := range kinds {
				e.Pieces = append(e.Pieces, pki.EvidenceDigest{Kind: k, Digest: [32]byte{byte(n)}})
			}
			why := pki.Refuse(rule, "send other evidence", "CN=alice %d", n)
			if err := r.RecordEvidence(t.Context(), pki.ActorEvidence(kinds[0], fmt.Sprint(n)), id, e, why); !errors.As(err, new(recorded)) {
				t.Errorf("RecordEvidence returns %v, without a mark", err)
			}
		}
		for n := range 1000 {
			record(n, pki.SPIFFEID{}, pki.RulePolicy, pki.EvidenceX5C)
		}
		record(0, pki.SPIFFEID{}, pki.RulePolicy, pki.EvidenceJWT)
		record(0, pki.SPIFFEID{}, pki.RulePolicy, pki.EvidenceX5C, pki.EvidenceTPM)
		record(0, sourceID(t, 1), pki.RuleEvidenceExpired, pki.EvidenceX5C)
		record(0, sourceID(t, 1), pki.RuleAlreadyEnrolled, pki.EvidenceX5C)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		id := sourceID(t, 1).String() + "x5c "
		want := append(slices.Repeat([]string{"x5c "}, 10), "jwt ", "x5c tpm ", id, id+"CN=alice 0", "x5c 990 more refusals within 1m0s")
		if all := b.all(); !slices.Equal(all, want) {
			t.Errorf("the audit log has %q, want %q", all, want)
		}
		if !strings.Contains(output.String(), "CN=alice 9") {
			t.Error("the operational log lacks the detail")
		}
		r.Close(context.Background())
	})
}

func TestCloseWritesCounts(t *testing.T) {
	b := &memoryStore{}
	r := New(b, time.Now, slog.New(slog.NewTextHandler(io.Discard, nil)))
	id := sourceID(t, 1)
	for range 15 {
		if err := r.write(t.Context(), of(id, pki.Refuse(pki.RuleRevoked, "", "revoked"))); err != nil {
			t.Fatal(err)
		}
	}
	r.Close(context.Background())
	if all := b.all(); len(all) != 11 || !strings.Contains(all[10], "5 more refusals") {
		t.Errorf("after Close: %q", all)
	}
}

func TestSourcesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &memoryStore{}
		r := New(b, time.Now, slog.New(slog.NewTextHandler(io.Discard, nil)))
		for n := range maxSources + 500 {
			id := sourceID(t, n)
			if err := r.write(t.Context(), of(id, pki.Refuse(pki.RuleRevoked, "", "revoked"))); err != nil {
				t.Fatal(err)
			}
		}
		if n := len(r.sources); n != maxSources+1 {
			t.Errorf("%d sources are in memory, want %d and one for the rest", n, maxSources)
		}
		r.Close(context.Background())
	})
}

// A source that is refused all day gets about refusalsPerDay entries for a rule, and then one count per hour. It gets
// entries again on the next day.
func TestRefusalsPerDayAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &memoryStore{}
		r := New(b, time.Now, slog.New(slog.NewTextHandler(io.Discard, nil)))
		loud, quiet := sourceID(t, 1), sourceID(t, 2)
		const seconds, days = 5, 3
		refused := 0
		for range days * 24 * 3600 / seconds {
			if err := r.write(t.Context(), of(loud, pki.Refuse(pki.RuleRevoked, "", "revoked"))); err != nil {
				t.Fatal(err)
			}
			refused++
			time.Sleep(seconds * time.Second)
		}
		counted, spent := 0, 0
		for _, entry := range b.all() {
			var more int
			if _, err := fmt.Sscanf(entry[strings.Index(entry, " ")+1:], "%d more refusals", &more); err == nil {
				counted += more
			} else {
				counted++
			}
			if strings.Contains(entry, "further ones are only counted") {
				spent++
			}
		}
		if n := len(b.all()); n > days*(refusalsPerDay+refusalsPerDay/refusalsEach+25) || n < days*refusalsPerDay {
			t.Errorf("%d entries in %d days, want about %d a day", n, days, refusalsPerDay+35)
		}
		if spent != days {
			t.Errorf("%d entries say that further refusals are only counted, want one a day", spent)
		}
		for _, rule := range []pki.Rule{pki.RuleRenewalKeyConflict, pki.RuleRevoked} {
			if err := r.write(t.Context(), of(quiet, pki.Refuse(rule, "", "another"))); err != nil {
				t.Fatal(err)
			}
		}
		if all := b.all(); !strings.HasSuffix(all[len(all)-1], "another") {
			t.Error("another source has no entry")
		}
		r.Close(context.Background())
		all := b.all()
		for _, entry := range all[len(all)-1:] {
			var more int
			if _, err := fmt.Sscanf(entry[strings.Index(entry, " ")+1:], "%d more refusals", &more); err == nil {
				counted += more
			}
		}
		if counted != refused {
			t.Errorf("the log accounts for %d refusals of %d", counted, refused)
		}
	})
}

func TestDaysAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(&memoryStore{}, time.Now, slog.New(slog.NewTextHandler(io.Discard, nil)))
		loud := sourceKey{id: sourceID(t, 0), rule: pki.RuleRevoked}
		r.days[loud] = &day{begun: time.Now(), entries: refusalsPerDay}
		for n := range 2 * maxDays {
			r.day(sourceKey{id: sourceID(t, n+1), rule: pki.RuleRevoked}).entries++
			if len(r.days) > maxDays {
				t.Fatalf("%d days are in memory", len(r.days))
			}
		}
		if r.day(loud).entries != refusalsPerDay {
			t.Error("the day of a source with many entries was removed before days with few")
		}
		for n := range maxDays {
			r.day(sourceKey{id: sourceID(t, n+1), rule: pki.RuleRenewalKeyConflict}).entries += refusalsPerDay
		}
		if n := len(r.days); n > maxDays {
			t.Errorf("%d days of sources with many entries are in memory", n)
		}
	})
}

// TestRecordOnce records five refusals about each of three certificates. One for each certificate is logged, and all
// are marked.
func TestRecordOnce(t *testing.T) {
	b := &memoryStore{}
	r := New(b, time.Now, slog.New(slog.NewTextHandler(io.Discard, nil)))
	defer r.Close(t.Context())
	id := sourceID(t, 1)
	why := pki.Refuse(pki.RuleRenewalTooEarly, "renew later", "too early")
	for n := range byte(3) {
		serial, err := pki.MakeSerial(time.Now(), [pki.SerialRandomSize]byte{n})
		if err != nil {
			t.Fatal(err)
		}
		for range 5 {
			marked := r.RecordOnce(t.Context(), pki.ActorIdentity(id), id, serial, why)
			if got, ok := pki.AsRefusal(marked); !ok || got != why {
				t.Fatalf("RecordOnce returns %v", marked)
			}
			if err := r.Record(t.Context(), pki.ActorIdentity(id), id, marked); !errors.Is(err, marked) {
				t.Errorf("Record returns %v", err)
			}
		}
	}
	if n := len(b.all()); n != 3 {
		t.Errorf("%d entries about three certificates, want 3", n)
	}
}

// TestRecentIsBounded adds more serial numbers than recent may hold.
func TestRecentIsBounded(t *testing.T) {
	var r recent
	for range 5 * maxRecent {
		var random [pki.SerialRandomSize]byte
		_, _ = rand.Read(random[:])
		serial, err := pki.MakeSerial(time.Now(), random)
		if err != nil {
			t.Fatal(err)
		}
		if !r.add(serial) || r.add(serial) {
			t.Fatal("add returns false for a new certificate, or true for an old one")
		}
		if n := len(r.newest) + len(r.before); n > 2*maxRecent {
			t.Fatalf("%d certificates are in memory", n)
		}
	}
}

func TestWriteReturnsErrors(t *testing.T) {
	b := &memoryStore{fail: errors.New("disk full")}
	r := New(b, time.Now, slog.New(slog.NewTextHandler(io.Discard, nil)))
	id := sourceID(t, 1)
	defer r.Close(context.Background())
	if err := r.write(t.Context(), of(id, pki.Refuse(pki.RuleRevoked, "", "revoked"))); err == nil {
		t.Error("write returns no error although the entry is lost")
	}
}
