package main

import (
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/brevet-pki/brevet/internal/cli/clitest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"brevet": main})
}

// TestScripts runs the scripts in testdata with the real binaries.
func TestScripts(t *testing.T) {
	commands := map[string]func(*testscript.TestScript, bool, []string){"postgres": startPostgres, "recover": recoverPostgres}
	clitest.RunWith(t, commands, "brevet-agent")
}

// TestFlagsMeanOneThing checks that a flag has the same type and meaning in every command, as in docs/commands.md.
func TestFlagsMeanOneThing(t *testing.T) { clitest.Flags(t, newRoot(), "../../docs/commands.md") }

func TestEveryCommandHasAScript(t *testing.T) { clitest.EveryCommandHasAScript(t, newRoot()) }
