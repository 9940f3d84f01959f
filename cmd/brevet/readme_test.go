package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/internal/cli/clitest"
	"github.com/brevet-pki/brevet/internal/cli/devca"
)

// TestTour runs the tour in README.md. The info strings of its code blocks say what they contain:
//
//	sh tour-server   the command that starts the CA, in its own terminal
//	sh tour          commands that succeed
//	sh tour fails    commands of which the last one fails, possibly after some tries
//	sh tour certbot  commands that succeed, and need certbot: make test-judges runs them
//	text tour        lines that the block before prints, in this order; … matches any text
//
// All blocks except the first run in one shell, in their own home directory.

// tourTimeout is the timeout of the server's start, and of all commands together. Only a program that hangs reaches it.
const tourTimeout = 2 * time.Minute

// tourBlock is a block of commands with the expected output.
type tourBlock struct {
	kind     string
	commands string
	output   []string
}

var tourFence = regexp.MustCompile("(?ms)^```((?:sh|text) tour[^\n]*)\n(.*?\n)```$")

// readTour reads the blocks from README.md. It replaces the default ports by free ports of this machine.
func readTour(t *testing.T, ports *strings.Replacer) (server tourBlock, blocks []tourBlock) {
	t.Helper()
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	skipped := false
	for _, m := range tourFence.FindAllStringSubmatch(string(text), -1) {
		content := ports.Replace(m[2])
		if m[1] != "text tour" {
			skipped = m[1] == "sh tour certbot" && !withJudges
		}
		if skipped {
			continue
		}
		if m[1] != "text tour" {
			blocks = append(blocks, tourBlock{kind: m[1], commands: content})
			continue
		}
		if len(blocks) == 0 {
			t.Fatal("README.md: the tour begins with an output")
		}
		blocks[len(blocks)-1].output = strings.Split(strings.TrimSpace(content), "\n")
	}
	if len(blocks) < 5 || blocks[0].kind != "sh tour-server" {
		t.Fatalf("README.md: a tour of %d blocks, the first of which starts no server", len(blocks))
	}
	return blocks[0], blocks[1:]
}

// missing returns the first expected line that does not follow the earlier ones in the output, or "".
func (b tourBlock) missing(output string) string {
	for _, want := range b.output {
		var parts []string
		for part := range strings.SplitSeq(strings.TrimSpace(want), "…") {
			parts = append(parts, regexp.QuoteMeta(part))
		}
		found := regexp.MustCompile(strings.Join(parts, ".*")).FindStringIndex(output)
		if found == nil {
			return want
		}
		output = output[found[1]:]
	}
	return ""
}

func TestTour(t *testing.T) {
	tools := []string{"bash", "openssl", "curl"}
	if withJudges {
		tools = append(tools, "certbot")
	}
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%v: run deploy/setup.sh --test", err)
		}
	}
	addresses, err := devca.FreeAddresses(t.Context(), 3)
	if err != nil {
		t.Fatal(err)
	}
	grpc, http, https := addresses[0], addresses[1], addresses[2]
	_, port, err := net.SplitHostPort(https)
	if err != nil {
		t.Fatal(err)
	}
	server, blocks := readTour(t, strings.NewReplacer("127.0.0.1:7443", grpc, "127.0.0.1:7080", http, "localhost:8443", "localhost:"+port))
	makeRunIsDev(t, server.commands)

	clone := t.TempDir() // like the directory into which a reader has cloned the repository
	clitest.Build(t, filepath.Join(clone, "bin"), "brevet", "brevet-agent")
	env := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "LC_ALL=C"}
	// Cleanup interrupts the server after the test's context has ended.
	dev := exec.CommandContext(context.WithoutCancel(t.Context()),
		filepath.Join(clone, "bin", "brevet"), "dev", "--grpc", grpc, "--http", http, "--https", https)
	dev.Env = env
	server.start(t, dev)

	ctx, cancel := context.WithTimeout(t.Context(), tourTimeout)
	defer cancel()
	outputs := t.TempDir()
	shell := exec.CommandContext(ctx, "bash", "-c", script(outputs, blocks))
	shell.Dir, shell.Env = clone, env
	err = shell.Run()
	for n, b := range blocks {
		output, _ := os.ReadFile(outputOf(outputs, n)) // a block that was not reached has no output
		if line := b.missing(string(output)); line != "" {
			t.Fatalf("after\n%sthe tour promises the line %q, and this came:\n%s", b.commands, line, output)
		}
	}
	if err != nil {
		t.Errorf("the commands of the tour: %v", err)
	}
}

// script returns one shell script with all blocks. It ends at the first command that does not succeed or fail as
// expected.
func script(outputs string, blocks []tourBlock) string {
	var s strings.Builder
	s.WriteString("set -euo pipefail\n")
	for n, b := range blocks {
		fmt.Fprintf(&s, "exec >'%s' 2>&1\n", outputOf(outputs, n))
		if b.kind == "sh tour fails" {
			fmt.Fprintf(&s, "until ! {\n%s}; do sleep 0.1; done\n", b.commands)
		} else {
			s.WriteString(b.commands)
		}
	}
	return s.String()
}

func outputOf(outputs string, n int) string { return filepath.Join(outputs, strconv.Itoa(n)) }

// makeRunIsDev checks that the first command of the tour, make run, runs brevet dev.
func makeRunIsDev(t *testing.T, commands string) {
	t.Helper()
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	if commands != "make run\n" || !regexp.MustCompile(`(?m)^run:.*\n\tbin/brevet dev$`).Match(makefile) {
		t.Fatalf("the tour begins with %q: this test runs brevet dev, as make run does", commands)
	}
}

// start starts a server, and waits until it has printed the expected output. At the end of the test the server is
// interrupted.
func (b tourBlock) start(t *testing.T, server *exec.Cmd) {
	t.Helper()
	var stderr bytes.Buffer
	server.Stderr = &stderr
	out, err := server.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	up := make(chan string, 1) // the server's output up to the last expected line, or to its end
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		var output strings.Builder
		lines, sent := bufio.NewScanner(out), false
		for lines.Scan() {
			fmt.Fprintln(&output, lines.Text())
			if !sent && b.missing(output.String()) == "" {
				up <- output.String()
				sent = true
			}
		}
		if !sent {
			up <- output.String()
		}
	}()
	t.Cleanup(func() {
		_ = server.Process.Signal(os.Interrupt) // fails if the server has already ended, which Wait reports
		<-drained
		if err := server.Wait(); err != nil {
			t.Errorf("%s: %v\n%s", server, err, stderr.String())
		}
	})
	select {
	case output := <-up:
		if line := b.missing(output); line != "" {
			t.Fatalf("the tour promises the line %q, and the server printed:\n%s", line, output)
		}
	case <-time.After(tourTimeout):
		t.Fatalf("the server does not come up")
	}
}
