package main

import (
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/brevet-pki/brevet/internal/cli/clitest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"brevet-bench": main})
}

// TestScripts runs the scripts in testdata with the real binaries.
func TestScripts(t *testing.T) { clitest.Run(t, "brevet") }

func TestOneFlagOneValue(t *testing.T) {
	if flags := clitest.OneFlagOneValue(t, newRoot()); flags < 20 {
		t.Errorf("there are %d flags", flags)
	}
}
