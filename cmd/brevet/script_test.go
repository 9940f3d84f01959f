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

// TestFlagsMeanOneThing checks that a flag has one type and one meaning in every command, as docs/commands.md has it.
func TestFlagsMeanOneThing(t *testing.T) { clitest.Flags(t, newRoot(), "../../docs/commands.md") }

func TestEveryCommandHasAScript(t *testing.T) { clitest.EveryCommandHasAScript(t, newRoot()) }
