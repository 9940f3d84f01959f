package hsm

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// openTerminal opens a pseudo-terminal. It returns the user's end and the program's end.
func openTerminal(t *testing.T) (user, program *os.File) {
	t.Helper()
	user, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = user.Close() })
	if err := unix.IoctlSetPointerInt(int(user.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(user.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = program.Close() })
	return user, program
}

// TestPromptPINDoesNotEcho enters a PIN at a terminal, which must not display it.
func TestPromptPINDoesNotEcho(t *testing.T) {
	user, program := openTerminal(t)
	const prompt = "PIN of the test HSM: "
	typed := make(chan error, 1)
	go func() {
		seen := make([]byte, len(prompt))
		_, err := io.ReadFull(user, seen)
		// Wait until the program has turned off the echo: the terminal would display input that comes earlier.
		for range 10_000 {
			if err != nil || echoOff(program) {
				break
			}
			time.Sleep(time.Millisecond)
		}
		_, werr := io.WriteString(user, "1234\n")
		typed <- errors.Join(err, werr)
	}()
	pin, err := PromptPIN(program, prompt)
	if err := errors.Join(err, <-typed); err != nil {
		t.Fatal(err)
	}
	if pin.reveal() != "1234" {
		t.Errorf("the PIN is %q", pin.reveal())
	}
	seen := make([]byte, 64)
	n, err := user.Read(seen)
	if err != nil || strings.Contains(string(seen[:n]), "1234") {
		t.Errorf("the terminal shows %q, %v", seen[:n], err)
	}
}

func echoOff(f *os.File) bool {
	state, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil && state.Lflag&unix.ECHO == 0
}

// TestPromptPINRefusesPipe checks that a PIN is not read from a pipe by mistake.
func TestPromptPINRefusesPipe(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = errors.Join(r.Close(), w.Close()) }()
	if _, err := PromptPIN(r, "PIN: "); err == nil || !strings.Contains(err.Error(), "PIN file") {
		t.Errorf("PromptPIN on a pipe: %v", err)
	}
}
