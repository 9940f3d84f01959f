package server_test

import (
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/servertest"
	"github.com/brevet-pki/brevet/translog"
)

// Every change and every refusal is in the log once, in order, with its actor.
func TestLogRecordsActors(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	before := len(w.Entries(t, 0))
	device := w.Register(t, "device", "device/1")
	token := servertest.Must(w.Operator.CreateToken(t.Context(), &brevetv1.CreateTokenRequest{Identity: device, Replace: true}))(t)
	holder := w.Enroll(t, w.Secret(t, token.GetToken()), servertest.Key(t))
	next := w.Renewed(t, holder, servertest.Key(t))
	_, err := holder.Renew(t.Context(), servertest.Renewal(t, servertest.Key(t)))
	servertest.Refused(t, err, codes.PermissionDenied, pki.RuleRenewalKeyConflict)
	_, err = holder.ListIdentities(t.Context(), &brevetv1.ListIdentitiesRequest{})
	servertest.Refused(t, err, codes.PermissionDenied, pki.RuleAccess)
	w.Suspend(t, device)
	w.Suspend(t, device) // no change, so no entry
	_, err = next.Renew(t.Context(), servertest.Renewal(t, servertest.Key(t)))
	servertest.Refused(t, err, codes.PermissionDenied, pki.RuleRevoked)
	w.Resume(t, device)
	w.Revoke(t, holder.Certificate, "keyCompromise")
	again := servertest.Must(w.Operator.CreateToken(t.Context(), &brevetv1.CreateTokenRequest{Identity: device, Replace: true}))(t)
	w.Enroll(t, w.Secret(t, again.GetToken()), servertest.Key(t))
	w.Retire(t, device)

	alice, first, second := w.Operator.ID, "token:"+token.GetTokenId(), "token:"+again.GetTokenId()
	want := []string{
		alice + " identity.registered done 0",
		alice + " token.created done 0",
		first + " token.bound done 0",
		first + " certificate.issued done 1",
		device + " certificate.issued done 1",
		device + " request.refused refused 0 renewal.key_conflict",
		device + " request.refused refused 0 access.denied",
		alice + " identity.suspended done 2",
		device + " request.refused refused 0 certificate.revoked",
		alice + " identity.resumed done 2",
		alice + " certificate.revoked done 1",
		alice + " token.created done 0",
		second + " token.bound done 0",
		second + " identity.replaced done 1",
		second + " certificate.issued done 1",
		alice + " identity.retired done 1",
	}
	var got []string
	for _, e := range w.Entries(t, before) {
		if e.Action == translog.CRLPublished {
			continue // the server publishes CRLs concurrently, so the place of these entries varies
		}
		if e.Identity.String() != device {
			t.Errorf("%s is about %q", e.Action, e.Identity)
		}
		got = append(got, strings.TrimSpace(fmt.Sprintf("%s %s %s %d %s", e.Actor, e.Action, e.Outcome, len(e.Changes), e.Facts()["rule"])))
	}
	if !slices.Equal(got, want) {
		t.Errorf("the log has\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// A client can compute the chain values from the entries. The last one equals the chain value of the head that the
// server returns.
func TestLogVerifiesOverTheAPI(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	w.Enrolled(t, "device", "device/1")
	var chain translog.Hash
	read := func(from, limit int64) (n int64) {
		t.Helper()
		stream := servertest.Must(w.Operator.ListEntries(t.Context(), &brevetv1.ListEntriesRequest{Start: &brevetv1.LogPosition{Index: from}, Limit: limit}))(t)
		for {
			e, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return n
			}
			if err != nil {
				t.Fatal(err)
			}
			n++
			if chain = translog.Chain(chain, e.GetEncoded()); string(e.GetChain()) != string(chain[:]) || e.GetPosition().GetIndex() != from+n-1 {
				t.Fatalf("entry %v does not continue the chain", e.GetPosition())
			}
			var decoded brevetv1.LogEntry
			if err := proto.Unmarshal(e.GetEncoded(), &decoded); err != nil || !proto.Equal(&decoded, e.GetEntry()) {
				t.Fatalf("entry %v is not what its bytes decode to (%v)", e.GetPosition(), err)
			}
		}
	}
	if n := read(1, 3); n != 3 {
		t.Fatalf("%d entries, want 3", n)
	}
	size := 3 + read(4, 0)
	for { // the server may write more entries in the meantime
		head := servertest.Must(w.Operator.GetHead(t.Context(), &brevetv1.GetHeadRequest{}))(t)
		if head.GetPosition().GetIndex() == size {
			if string(head.GetChain()) != string(chain[:]) {
				t.Error("the head does not match the chain of the entries")
			}
			break
		}
		size += read(size+1, 0)
	}
	if n := read(size+100, 0); n != 0 {
		t.Errorf("%d entries beyond the end", n)
	}
}

// Entries that have left the store are read from the archive: the same entries, without a gap, and they verify.
func TestLogReadsWhatHasLeftTheStore(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	for n := range 20 {
		w.Register(t, "device", fmt.Sprintf("device/%d", n))
	}
	read := func(from, to int64) (all []translog.Sequenced) {
		t.Helper()
		stream := servertest.Must(w.Operator.ListEntries(t.Context(), &brevetv1.ListEntriesRequest{
			Start: &brevetv1.LogPosition{Index: from}, Limit: to - from + 1,
		}))(t)
		for {
			e, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return all
			}
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, translog.Sequenced{Index: uint64(e.GetPosition().GetIndex()), Entry: e.GetEncoded(), Chain: translog.Hash(e.GetChain())})
		}
	}
	size := servertest.Must(w.Operator.GetHead(t.Context(), &brevetv1.GetHeadRequest{}))(t).GetPosition().GetIndex()
	want := read(1, size)
	for first, last := int64(1), size/2; last < size; first, last = last+1, last+3 {
		to := translog.Head{Size: uint64(last), Chain: want[last-1].Chain}
		if err := w.Stores.Log.Archived(t.Context(), uint64(size)); err != nil {
			t.Fatal(err)
		}
		if removed, err := w.Stores.Log.Remove(t.Context(), uint64(first), to); err != nil || !removed {
			t.Fatalf("entries %d to %d: removed %v, %v", first, last, removed, err)
		}
		for from := int64(1); from <= last+2; from += 5 {
			for _, until := range []int64{last - 1, last, last + 1, size} {
				if until >= from && !reflect.DeepEqual(read(from, until), want[from-1:min(until, size)]) {
					t.Errorf("after %d entries have left, those from %d to %d are others", last, from, until)
				}
			}
		}
	}
	v := translog.NewVerifier(translog.Head{})
	for _, s := range read(1, size) {
		if err := v.Add(s); err != nil {
			t.Fatal(err)
		}
	}
	w.Enrolled(t, "device", "device/new") // the server goes on
}

// The search for secrets at the end of each test finds a secret in every encoding in which it could leak.
func TestSecretsAreFound(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	text := servertest.Must(w.Operator.CreateToken(t.Context(), &brevetv1.CreateTokenRequest{Identity: w.Register(t, "device", "device/1")}))(t).GetToken()
	secret := servertest.Must(enroll.ParseToken(text))(t).Secret
	for _, leak := range []string{
		string(secret.Bytes()), fmt.Sprintf("%x", secret.Bytes()), fmt.Sprintf("%X", secret.Bytes()), secret.Reveal(), text, "x" + text,
	} {
		if !servertest.Leaks([]byte("before"+leak+"after"), secret.Bytes()) {
			t.Errorf("the secret is not found in %.20q…", leak)
		}
	}
	if servertest.Leaks([]byte(w.Log.String()), secret.Bytes()) {
		t.Error("the server's log contains the secret")
	}
}
