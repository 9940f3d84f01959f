package evidencetest_test

import (
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/ra/evidencetest"
	"github.com/brevet-pki/brevet/store/memory"
)

// acmeSample is an order whose name was validated. The guard of the certificate binds it to its request, so the
// authenticator treats it as bearer evidence.
func acmeSample(t testing.TB) evidencetest.Sample {
	records, by := new(memory.Store), pki.ActorCommand("test")
	store, id := records.ACME(), must(pki.SPIFFEIDIn("fleet.example", "device/1"))(t)
	must(records.CreateIdentity(t.Context(), ra.Registration{Identity: ra.Identity{ID: id, Kind: pki.Device, Profile: "device"}}, by))(t)
	k := acme.ExternalKey{ID: acme.NewID(), Identity: id, CreatedBy: by, CreatedAt: now, ExpiresAt: now.Add(time.Hour)}
	must(store.CreateExternalKey(t.Context(), k, []byte("sealed")))(t)
	account := acme.Account{ID: acme.NewID(), Key: []byte("key"), Thumbprint: [32]byte{1}, Status: acme.AccountValid, ExternalKey: k.ID, CreatedAt: now}
	if _, _, err := store.CreateAccount(t.Context(), account); err != nil {
		t.Fatal(err)
	}
	o := acme.Order{
		ID: acme.NewID(), Account: account.ID, Identifiers: []acme.Identifier{{Type: acme.DNS, Value: "pump.example"}}, Profile: "acme",
		CreatedAt: now, ExpiresAt: now.Add(acme.OrderLifetime), Authorizations: []acme.ID{acme.NewID()},
	}
	challenge := acme.Challenge{Type: acme.HTTP01, Token: acme.NewToken(), Status: acme.StatusPending}
	authorization := acme.Authorization{ID: o.Authorizations[0], Account: account.ID, Order: o.ID, Challenges: []acme.Challenge{challenge}}
	if err := store.CreateOrder(t.Context(), o, []acme.Authorization{authorization}); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []acme.MoveKind{acme.Begin, acme.Succeed} {
		m := acme.Move{Authorization: authorization.ID, Kind: kind, Challenge: acme.HTTP01, At: now}
		if _, moved, err := store.MoveAuthorization(t.Context(), m); err != nil || !moved {
			t.Fatalf("the authorization moved: %t, %v", moved, err)
		}
	}
	return evidencetest.Sample{
		Kind: pki.EvidenceACME, Authenticator: acme.NewAuthenticator(acme.Settings{}, store), At: now, Expired: o.ExpiresAt,
		Key: pki.HashSPKI([]byte("key")), Bearer: true,
		Make: func(testing.TB, evidencetest.Request) []byte { return o.ID[:] },
	}
}
