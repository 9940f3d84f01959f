package server

import (
	"net/http"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/server/authz"
	"github.com/brevet-pki/brevet/server/frontdoor"
)

// Every route of the HTTPS listener has an operation with known callers and a queue, and a limit for its body. Every
// operation of EST and ACME has a route.
func TestEveryRouteIsLimited(t *testing.T) {
	s := &Server{config: Config{Clock: time.Now}}
	acme, err := s.newACMEDoor(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer acme.Close()
	served, paths := map[authz.Operation]bool{}, map[string]bool{}
	for _, d := range []frontdoor.Door{s.estDoor(), acme.Door()} {
		for _, r := range d.Routes {
			served[r.Operation] = true
			if paths[r.Method+r.Path] || d.Fail == nil || d.MinVersion == 0 && d.Name == "est" {
				t.Errorf("%s %s: the route is there twice, or its door has no limits", r.Method, r.Path)
			}
			paths[r.Method+r.Path] = true
			want := authz.Anybody // evidence or a signature in the request authenticates the client
			if path.Base(r.Path) == "simplereenroll" {
				want = authz.Renewing
			}
			if got := authz.AccessOf(r.Operation).Callers; got != want {
				t.Errorf("%s %s: the callers are %d, want %d", r.Method, r.Path, got, want)
			}
			// The two that no queue limits read memory only.
			if w, waits := works[r.Operation]; waits && sizes(1)[w].Slots == 0 || !waits && r.Operation != authz.ACMEDirectory && r.Operation != authz.ACMERenewalInfo {
				t.Errorf("%s %s: %s has no queue", r.Method, r.Path, r.Operation)
			}
			if r.MaxBody < 0 || r.MaxBody > 256<<10 || (r.MaxBody > 0) != (r.Method == http.MethodPost) && d.Name == "acme" {
				t.Errorf("%s %s: a body has up to %d bytes", r.Method, r.Path, r.MaxBody)
			}
		}
	}
	for _, op := range authz.Operations() {
		byHTTPS := strings.HasPrefix(string(op), "ACME") || strings.Contains(string(op), "EST") || op == authz.Enroll || op == authz.Renew
		if served[op] != byHTTPS {
			t.Errorf("%s has a route: %v, want %v", op, served[op], byHTTPS)
		}
	}
}
