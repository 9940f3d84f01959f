package server_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/revocation/crl"
	"github.com/brevet-pki/brevet/revocation/responder"
	"github.com/brevet-pki/brevet/server"
	"github.com/brevet-pki/brevet/server/servertest"
)

// TestListedCRLsMatchTheFiles compares ListCRLs with the CRLs over HTTP, including range requests, and with the files
// in a mirror directory.
func TestListedCRLsMatchTheFiles(t *testing.T) {
	w := servertest.New(t, ground, servertest.Options{})
	client := brevetv1.NewCRLServiceClient(w.Operator.Conn)
	for _, c := range servertest.Must(client.ListCRLs(t.Context(), &brevetv1.ListCRLsRequest{}))(t).GetCrls() {
		get := func(header, value string) (*http.Response, []byte) {
			t.Helper()
			q := servertest.Must(http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+w.HTTP+c.GetPath(), nil))(t)
			q.Header.Set(header, value)
			resp := servertest.Must(http.DefaultClient.Do(q))(t)
			defer resp.Body.Close()
			return resp, servertest.Must(io.ReadAll(resp.Body))(t)
		}
		resp, der := get("Accept", "*/*")
		list := servertest.Must(x509.ParseRevocationList(der))(t)
		if c.GetNumber() != list.Number.String() {
			continue // a newer CRL was published in between
		}
		if int64(len(der)) != c.GetSize() || c.GetPartition() != 0 || c.GetDelta() || c.GetIssuerName() != list.Issuer.String() ||
			c.GetEntries() != int64(len(list.RevokedCertificateEntries)) {
			t.Errorf("ListCRLs returns %v for a CRL of %d bytes, %d entries, by %s", c, len(der), len(list.RevokedCertificateEntries), list.Issuer)
		}
		if part, rest := get("Range", "bytes=10-19"); part.StatusCode != http.StatusPartialContent || !bytes.Equal(rest, der[10:20]) {
			t.Errorf("a range request returns %s", part.Status)
		}
		if same, _ := get("If-None-Match", resp.Header.Get("ETag")); same.StatusCode != http.StatusNotModified {
			t.Errorf("a conditional request returns %s", same.Status)
		}
		path := filepath.Join(w.Dir, "published", filepath.Base(c.GetPath()))
		for n := 0; ; n++ {
			if there, err := os.ReadFile(path); err == nil && bytes.Equal(there, der) {
				break
			} else if n == 500 {
				t.Fatalf("%s does not become the CRL that is served: %v", path, err)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	if short := pki.IssuerOf(w.Issuing).Short(); len(servertest.Must(os.ReadFile(filepath.Join(w.Dir, "crls", short+".crl")))(t)) == 0 {
		t.Error("the server's own directory has no CRL")
	}
}

// countingFeed is a feed that counts calls of Changes.
type countingFeed struct {
	responder.Feed
	times *atomic.Int64
}

func (r countingFeed) Changes(ctx context.Context, after uint64, limit int, apply func([]pki.StatusChange)) (uint64, error) {
	r.times.Add(1)
	return r.Feed.Changes(ctx, after, limit, apply)
}

// lateCRLs is a store that delays the first CRLs until a countingFeed with the same counter has been read five times.
type lateCRLs struct {
	crl.Store
	times *atomic.Int64
}

func (l lateCRLs) PutCRLs(ctx context.Context, crls []crl.CRL, by pki.Actor, at time.Time) error {
	for l.times.Load() < 5 && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	return l.Store.PutCRLs(ctx, crls, by, at)
}

// When the server reports that it serves, the first CRL of a new CA is available.
func TestServingStartsAfterTheFirstCRL(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	w.StopServer(t)
	short := pki.IssuerOf(w.Issuing).Short()
	servertest.Must(0, os.Remove(filepath.Join(w.Dir, "crls", short+".crl")))(t) // so that there is no CRL at the start
	var times atomic.Int64
	w.Serve(t, servertest.Options{Wrap: func(s server.Stores) server.Stores {
		s.Feed, s.CRLs = countingFeed{s.Feed, &times}, lateCRLs{s.CRLs, &times}
		return s
	}})
	resp := servertest.Must(http.Get("http://" + w.HTTP + "/crl/" + short + ".crl"))(t)
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("the server serves, and the request for its CRL returns %s", resp.Status)
	}
}
