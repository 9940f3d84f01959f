package memory_test

import (
	"testing"

	"github.com/brevet-pki/brevet/store/memory"
	"github.com/brevet-pki/brevet/store/storetest"
)

func TestConformance(t *testing.T) {
	storetest.RunRegistration(t, func(*testing.T) storetest.Store { return handle(&memory.Store{}) })
}

// handle returns the views of a store. Its records outlive every handle.
func handle(s *memory.Store) storetest.Store {
	again := func(*testing.T) storetest.Store { return handle(s) }
	return storetest.Store{Journal: s, RA: s, Audit: s, Orders: s, Counts: s, Feed: s, Log: s, Reopen: again, Second: again}
}
