package main

import (
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/brevet-pki/brevet/internal/cli/clitest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"brevet": main})
}

// TestScripts runs the binary as people do.
func TestScripts(t *testing.T) { clitest.Run(t, "brevet-agent") }

func TestOneFlagOneValue(t *testing.T) {
	if flags := clitest.OneFlagOneValue(t, newRoot()); flags < 50 {
		t.Errorf("there are %d flags", flags)
	}
}
