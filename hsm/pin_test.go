package hsm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestPINIsRedactedEverywhere prints a PIN in every possible way.
func TestPINIsRedactedEverywhere(t *testing.T) {
	const secret = "hunter2-4711"
	pin := testPIN(t, secret)
	type holder struct {
		Shown  PIN
		hidden PIN
		inner  *PIN
	}
	things := []any{pin, &pin, holder{pin, pin, &pin}, &holder{pin, pin, &pin}, []PIN{pin}, map[string]PIN{"k": pin}, HSM{pin: pin}.pin}
	forms := []string{secret, fmt.Sprintf("%x", secret), fmt.Sprintf("%X", secret), fmt.Sprintf("%d", []byte(secret)), fmt.Sprintf("% x", secret)}
	var shown []string
	for _, thing := range things {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%p", "%T", "%o", "%c", "%U", "%!"} {
			shown = append(shown, fmt.Sprintf(verb, thing))
		}
		var b bytes.Buffer
		for _, h := range []slog.Handler{slog.NewTextHandler(&b, nil), slog.NewJSONHandler(&b, nil)} {
			slog.New(h).Info("open", "pin", thing)
		}
		j, err := json.Marshal(thing)
		if err != nil {
			t.Fatal(err)
		}
		shown = append(shown, b.String(), string(j), fmt.Errorf("with %v", thing).Error())
	}
	shown = append(shown, pin.String(), pin.GoString())
	for _, s := range shown {
		for _, form := range forms {
			if strings.Contains(s, form) {
				t.Errorf("the PIN is in %s", s)
			}
		}
	}
	if pin.reveal() != secret {
		t.Errorf("the PIN is %q", pin.reveal())
	}
}

// TestErrorsRedactThePIN checks that the error about a refused PIN does not contain the PIN.
func TestErrorsRedactThePIN(t *testing.T) {
	b := newTestBench(t, "errors")
	const wrong = "wrong-4711"
	_, err := b.reg.open(t.Context(), b.config("errors"), testPIN(t, wrong))
	if s := fmt.Sprintf("%+v %#v", err, err); err == nil || strings.Contains(s, wrong) {
		t.Errorf("the error is %s", s)
	}
}

// writePIN writes a file with exactly the given mode.
func writePIN(t *testing.T, content string, mode fs.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "pin")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestReadPINFile(t *testing.T) {
	for content, want := range map[string]string{
		"1234": "1234", "1234\n": "1234", "1234\r\n": "1234", "12 34": "12 34",
		strings.Repeat("x", maxPIN) + "\r\n": strings.Repeat("x", maxPIN),
	} {
		pin, err := ReadPINFile(writePIN(t, content, 0o600))
		if err != nil || pin.reveal() != want {
			t.Errorf("%q: %q, %v", content, pin.reveal(), err)
		}
	}
	for _, content := range []string{"", "\n", "\r\n", "1234\n\n", "12\n34", "12\x0034", strings.Repeat("x", maxPIN+1), strings.Repeat("x", 1<<16)} {
		if _, err := ReadPINFile(writePIN(t, content, 0o600)); err == nil || len(content) > 2 && strings.Contains(err.Error(), content) {
			t.Errorf("%.20q: %v", content, err)
		}
	}
	for mode, fine := range map[fs.FileMode]bool{
		0o400: true, 0o600: true, 0o640: true, 0o440: true, 0o700: true,
		0o604: false, 0o644: false, 0o660: false, 0o602: false, 0o601: false, 0o666: false, 0o620: false,
	} {
		_, err := ReadPINFile(writePIN(t, "1234", mode))
		var bad *FileModeError
		if (err == nil) != fine || !fine && (!errors.As(err, &bad) || bad.Mode.Perm() != mode) {
			t.Errorf("mode %04o: %v", mode, err)
		}
	}
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{fifo, t.TempDir(), filepath.Join(t.TempDir(), "none")} {
		if _, err := ReadPINFile(path); err == nil {
			t.Errorf("%s was read", path)
		}
	}
}

func TestReadPINCredential(t *testing.T) {
	path := writePIN(t, "1234\n", 0o440) // systemd's credentials have this mode
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	if _, err := ReadPINCredential("pin"); err == nil || !strings.Contains(err.Error(), "LoadCredential=") {
		t.Errorf("ReadPINCredential outside of systemd: %v", err)
	}
	t.Setenv("CREDENTIALS_DIRECTORY", filepath.Dir(path))
	pin, err := ReadPINCredential("pin")
	if err != nil || pin.reveal() != "1234" {
		t.Errorf("%q, %v", pin.reveal(), err)
	}
	for _, name := range []string{"", ".", "..", "other", "../" + filepath.Base(filepath.Dir(path)) + "/pin"} {
		if _, err := ReadPINCredential(name); err == nil {
			t.Errorf("%q was read", name)
		}
	}
}

// TestPassedPINIsReceived checks that ReceivePIN returns the PIN that Pass wrote, and refuses longer input.
func TestPassedPINIsReceived(t *testing.T) {
	var pipe bytes.Buffer
	if err := testPIN(t, "hunter2-4711").Pass(&pipe); err != nil {
		t.Fatal(err)
	}
	got, err := ReceivePIN(&pipe)
	if err != nil || got.reveal() != "hunter2-4711" {
		t.Errorf("%q, %v", got.reveal(), err)
	}
	for _, wrong := range []string{"", "\n", "a\nb\n", strings.Repeat("1", maxPIN+1)} {
		if got, err := ReceivePIN(strings.NewReader(wrong)); err == nil {
			t.Errorf("%q gives the PIN %q", wrong, got.reveal())
		}
	}
}
