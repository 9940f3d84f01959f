package acmetable

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/brevet-pki/brevet/ra/acme"
)

func TestAccountCache(t *testing.T) {
	var c accountCache
	id := acme.NewID()
	read := func(load func() (acme.Account, error)) acme.AccountStatus {
		t.Helper()
		a, err := c.read(id, load)
		if err != nil {
			t.Fatal(err)
		}
		return a.Status
	}
	store := acme.AccountValid
	load := func() (acme.Account, error) { return acme.Account{ID: id, Status: store}, nil }
	failure := errors.New("the disk fails")
	if _, err := c.read(id, func() (acme.Account, error) { return acme.Account{}, failure }); !errors.Is(err, failure) {
		t.Errorf("the error is %v", err)
	}
	// A change commits and returns between the snapshot of a reader and the end of its read.
	overtaken := read(func() (acme.Account, error) {
		a, err := load()
		store = acme.AccountDeactivated
		c.changed()
		return a, err
	})
	if overtaken != acme.AccountValid {
		t.Errorf("the read that began before the change returned %s", overtaken)
	}
	if s := read(load); s != acme.AccountDeactivated {
		t.Errorf("a read after a change returned an account that is %s", s)
	}
	store = acme.AccountRevoked
	if s := read(load); s != acme.AccountDeactivated {
		t.Errorf("the account was read again: it is %s", s)
	}
	c.changed()
	if s := read(load); s != acme.AccountRevoked {
		t.Errorf("a read after a change returned an account that is %s", s)
	}
	for n := range uint64(maxCached + 100) {
		binary.BigEndian.PutUint64(id[:], n)
		read(load)
	}
	if n := len(c.accounts); n != maxCached {
		t.Errorf("the cache has %d accounts", n)
	}
}
