package agent

import (
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os/user"
	"strconv"
	"time"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/internal/config"
	"github.com/brevet-pki/brevet/pki"
)

// settings is the configuration file. What is said about its fields is the reference in docs/configuration.md.
type settings struct {
	// Required. The directory of the credential, such as `/var/lib/brevet-agent`. The agent makes it, and writes nowhere
	// else. `current/` in it has `key.pem`, `cert.pem` and `bundle.pem`.
	Directory string `yaml:"directory"`
	// The file with an enrollment token. It is read only when there is no valid credential, or when the server refuses to
	// renew the one there is. A token that was spent may stay there: it is passed over. Left out, the first credential
	// comes from `brevet-agent enroll --token-file`.
	TokenFile string `yaml:"token_file"`
	// The server to ask, as `host:port`, such as `ca.fleet.example:7443`. Left out, it is the one that the token named. If
	// the environment has `HTTPS_PROXY`, and `NO_PROXY` does not name the server, the agent reaches it through that proxy.
	Server string `yaml:"server"`
	// How long a certificate shall live, such as `12h` or `7d`. Left out, it is the profile's `lifetime`; the server
	// refuses more than the profile's `max_lifetime`.
	Lifetime time.Duration `yaml:"lifetime"`
	// What keys the agent makes, a new one for each certificate: `P-256`, `P-384` or `Ed25519`. The profile has to allow
	// it.
	KeyType pki.KeyType `yaml:"key_type"`
	// The group, by name or number, whose members may read `key.pem` beside the agent's own user. The agent's user has to
	// be a member. Left out, nobody else may read it. Everybody may read the certificates.
	KeyGroup string `yaml:"key_group"`
	// The mode of `key.pem`: `0600`, `0400`, `0640` or `0440`. Left out, it is `0600`, and `0640` with `key_group`.
	KeyMode fileMode `yaml:"key_mode"`
	// A command and its arguments, run after each new credential, such as `[/usr/local/bin/reload-broker, --quietly]`.
	// It runs without a shell, as the agent's user, inside its service's confinement, for 30 seconds at most. Exit code 0
	// is success. After any other it runs again with growing waits. Its output goes to the agent's standard error.
	Reload []string `yaml:"reload"`
	// How the agent logs, to standard error: `text` or `json`.
	LogFormat config.LogFormat `yaml:"log_format"`
}

// defaultSettings is what holds where the file says nothing.
func defaultSettings() settings { return settings{KeyType: pki.P256, LogFormat: config.LogText} }

func loadSettings(path string) (settings, error) {
	s := defaultSettings()
	if err := config.Load(path, &s); err != nil {
		return s, err
	}
	fault := func(key, problem string) error { return &config.Error{File: path, Key: key, Problem: problem} }
	switch {
	case s.Directory == "":
		return s, fault("directory", "name the directory that the credential is kept in, such as /var/lib/brevet-agent")
	case s.TokenFile == "-":
		return s, fault("token_file", "name a file; standard input is for the enroll command's --token-file -")
	case s.Lifetime < 0:
		return s, fault("lifetime", "a lifetime is positive; leave it out for the profile's default")
	case len(s.Reload) > 0 && s.Reload[0] == "":
		return s, fault("reload", "the first item names the command")
	}
	if err := enroll.CheckKeyType(s.KeyType); err != nil {
		return s, fault("key_type", err.Error())
	}
	if s.KeyMode != 0 {
		if err := enroll.CheckKeyMode(fs.FileMode(s.KeyMode)); err != nil {
			return s, fault("key_mode", err.Error())
		}
	}
	if s.Server != "" {
		if err := enroll.CheckServer(s.Server); err != nil {
			return s, fault("server", err.Error())
		}
	}
	return s, nil
}

// fileMode is a mode in octal digits; 0 where none is set.
type fileMode fs.FileMode

// UnmarshalText reads octal digits.
func (m *fileMode) UnmarshalText(text []byte) error {
	n, err := strconv.ParseUint(string(text), 8, 9)
	if err != nil {
		return fmt.Errorf("%q is not a file mode: use octal digits, such as 0640", text)
	}
	*m = fileMode(n)
	return nil
}

// String returns octal digits, and nothing for 0.
func (m fileMode) String() string {
	if m == 0 {
		return ""
	}
	return fmt.Sprintf("%04o", uint32(m))
}

// shareKey has the directory give the private key the configured group and mode.
func (s settings) shareKey(dir *enroll.Directory) error {
	group, mode := 0, fs.FileMode(s.KeyMode)
	if s.KeyGroup != "" {
		id := s.KeyGroup
		if found, err := user.LookupGroup(id); err == nil {
			id = found.Gid
		}
		var err error
		if group, err = strconv.Atoi(id); err != nil || group <= 0 {
			return misusef("key_group: there is no group %q: use the name of a group on this machine other than root's, or its number", s.KeyGroup)
		}
	}
	if mode == 0 {
		mode = 0o600
		if group != 0 {
			mode = 0o640
		}
	}
	return dir.ShareKey(group, mode)
}

func (s settings) logger(w io.Writer) *slog.Logger {
	return s.LogFormat.Logger(w, config.LogLevel(slog.LevelInfo))
}

// token reads the token file. That there is none to be had is ErrNoToken.
func (s settings) token() (enroll.Token, error) {
	if s.TokenFile == "" {
		return enroll.Token{}, fmt.Errorf("%w, for token_file is not set", enroll.ErrNoToken)
	}
	t, err := enroll.ReadTokenFile(s.TokenFile, nil)
	if err != nil {
		return t, fmt.Errorf("%w that can be used: %w", enroll.ErrNoToken, err)
	}
	return t, nil
}
