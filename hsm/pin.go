package hsm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/term"
)

// maxPIN bounds a PIN, in octets.
const maxPIN = 255

// redacted is what a PIN shows of itself.
const redacted = "[PIN]"

// PIN is a secret that opens a token. It never shows itself: not in any fmt verb, in a log,
// in text or JSON. The zero value is no PIN.
type PIN struct {
	secret *string // a pointer, so that printing a struct around it by reflection shows none of it
}

// NewPIN takes a PIN of 1 to 255 octets without line breaks or NUL.
func NewPIN(secret []byte) (PIN, error) {
	switch {
	case len(secret) == 0:
		return PIN{}, errors.New("hsm: the PIN is empty")
	case len(secret) > maxPIN:
		return PIN{}, fmt.Errorf("hsm: the PIN is longer than %d octets", maxPIN)
	case bytes.ContainsAny(secret, "\r\n\x00"):
		return PIN{}, errors.New("hsm: the PIN holds a line break or a NUL: give one line, with nothing but the PIN")
	}
	s := string(secret)
	return PIN{&s}, nil
}

func (p PIN) empty() bool { return p.secret == nil }

// reveal returns the secret, for the library alone.
func (p PIN) reveal() string {
	if p.secret == nil {
		return ""
	}
	return *p.secret
}

// String hides the PIN.
func (p PIN) String() string { return redacted }

// GoString hides the PIN.
func (p PIN) GoString() string { return redacted }

// Format hides the PIN from every verb.
func (p PIN) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// LogValue hides the PIN.
func (p PIN) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText hides the PIN, from JSON and YAML too.
func (p PIN) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// FileModeError says that others than the owner and the group's readers can reach a PIN
// file.
type FileModeError struct {
	Path string
	Mode fs.FileMode
}

func (e *FileModeError) Error() string {
	return fmt.Sprintf("hsm: PIN file %s has mode %04o, so others can reach it: chmod 0600 (or 0640 for the service's own group), and change the PIN if they may have seen it", e.Path, e.Mode.Perm())
}

// ReadPINFile reads a PIN from the one line of a regular file. Its owner may do anything
// and its group may read, as an administrator's file for a service needs; any other right
// gives a [FileModeError].
func ReadPINFile(path string) (PIN, error) {
	// Without O_NONBLOCK a FIFO would hold the process here.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) //nolint:gosec // the operator names the file, and the name of a credential holds no slash
	if err != nil {
		return PIN{}, fmt.Errorf("hsm: PIN file: %w", err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return PIN{}, fmt.Errorf("hsm: PIN file: %w", err)
	}
	if !info.Mode().IsRegular() {
		return PIN{}, fmt.Errorf("hsm: PIN file %s is not a regular file", path)
	}
	if info.Mode().Perm()&0o027 != 0 {
		return PIN{}, &FileModeError{Path: path, Mode: info.Mode()}
	}
	pin, err := ReceivePIN(f)
	if err != nil {
		return PIN{}, fmt.Errorf("%w (in %s)", err, path)
	}
	return pin, nil
}

// Pass writes the PIN to another process of this program, over a pipe to where [ReceivePIN] reads it. It is the one way
// out of a PIN: not for files, and not for what others read.
func (p PIN) Pass(w io.Writer) error {
	_, err := io.WriteString(w, p.reveal()+"\n")
	return err
}

// ReceivePIN reads a PIN, which is all there is but for a line break.
func ReceivePIN(r io.Reader) (PIN, error) {
	raw, err := io.ReadAll(io.LimitReader(r, maxPIN+3)) // the PIN, a line break, and one more
	if err != nil {
		return PIN{}, fmt.Errorf("hsm: read the PIN: %w", err)
	}
	return NewPIN(bytes.TrimSuffix(bytes.TrimSuffix(raw, []byte("\n")), []byte("\r")))
}

// ReadPINCredential reads a PIN that systemd hands to the service: the file name in
// $CREDENTIALS_DIRECTORY, from LoadCredential= or LoadCredentialEncrypted= in the unit
// (systemd.exec(5)).
func ReadPINCredential(name string) (PIN, error) {
	if name == "" || name == "." || name == ".." || strings.ContainsRune(name, '/') {
		return PIN{}, fmt.Errorf("hsm: %q is not the name of a systemd credential", name)
	}
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	if dir == "" {
		return PIN{}, fmt.Errorf("hsm: there is no credential %q because systemd has set no CREDENTIALS_DIRECTORY: add LoadCredential=%s:<file> to the unit, or use a PIN file", name, name)
	}
	return ReadPINFile(filepath.Join(dir, name))
}

// PromptPIN asks for a PIN on a terminal, which does not show what is typed.
func PromptPIN(terminal *os.File, prompt string) (PIN, error) {
	fd := int(terminal.Fd())
	if !term.IsTerminal(fd) {
		return PIN{}, errors.New("hsm: there is no terminal to ask for the PIN: use a PIN file or a systemd credential")
	}
	if _, err := io.WriteString(terminal, prompt); err != nil {
		return PIN{}, fmt.Errorf("hsm: ask for the PIN: %w", err)
	}
	raw, err := term.ReadPassword(fd)
	_, _ = io.WriteString(terminal, "\r\n") // the Enter that was not shown
	if err != nil {
		return PIN{}, fmt.Errorf("hsm: ask for the PIN: %w", err)
	}
	return NewPIN(raw)
}
