package agent

import (
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/user"
	"strconv"
	"strings"
	"time"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/internal/config"
	"github.com/brevet-pki/brevet/pki"
)

// settings is the configuration. The comments of its fields are the reference in docs/configuration.md.
type settings struct {
	// Required. The directory of the credential, such as `/var/lib/brevet-agent`. The agent creates the directory, and
	// writes to no other directory. The folder `current/` in it contains `key.pem`, `cert.pem` and `bundle.pem`.
	StateDir string `yaml:"state_dir"`
	// The file that contains an enrollment token. The agent reads the file only if it has no valid credential, or if
	// the server refuses to renew the credential. A used token may stay in the file: the agent ignores it. Without
	// `token_file` and other evidence, obtain the first credential with `brevet-agent enroll --token-file`.
	//
	// The keys `token_file`, `factory_certificate`, `attestation` and `jwt` each name a kind of evidence. If two of them
	// are set, the agent sends both kinds in each request to enroll, and the server's policy must have a rule for both.
	// More than two are refused.
	TokenFile string `yaml:"token_file"`
	// The identity of this machine, as a path such as `sensor/S000017` or as a SPIFFE ID. A token for a pattern of
	// identities needs it. If the evidence proves another identity, the server refuses to enroll the machine.
	Identity string `yaml:"identity"`
	// The certificate that the manufacturer gave to the device (an IDevID of IEEE 802.1AR), as evidence.
	FactoryCertificate factorySettings `yaml:"factory_certificate"`
	// Whether the TPM in `key.tpm` is evidence: it proves that the key of a request is in it.
	Attestation bool `yaml:"attestation"`
	// A JSON Web Token that Kubernetes, a CI system or another issuer gave to the workload, as evidence.
	JWT jwtSettings `yaml:"jwt"`
	// The address of the server, as `host:port`, such as `ca.fleet.example:7443`. The default is the address in the
	// token. If the environment has `HTTPS_PROXY`, and `NO_PROXY` does not name the server, the agent connects through
	// that proxy.
	Server string `yaml:"server"`
	// The trust domain of the server, such as `fleet.example`. An agent that enrolls without a token needs it, together
	// with `root_fingerprint` and `server`, to recognize the server. An agent with a token does not need them. If they are
	// set, it refuses a token for another CA.
	TrustDomain string `yaml:"trust_domain"`
	// The SHA-256 of the root certificate in DER, as 64 hexadecimal digits. Colons between them are ignored, so the
	// output of `openssl x509 -noout -fingerprint -sha256` can be used.
	RootFingerprint fingerprint `yaml:"root_fingerprint"`
	// The lifetime of certificates that the agent requests, such as `12h` or `7d`. The default is the profile's
	// `lifetime`. The server refuses a lifetime above the profile's `max_lifetime`.
	Lifetime time.Duration `yaml:"lifetime"`
	// The private keys. The agent generates a new key for each certificate.
	Key keySettings `yaml:"key"`
	// A command and its arguments that the agent runs after each new credential, such as
	// `[/usr/local/bin/reload-broker, --quietly]`. The agent runs the command without a shell, as its own user and with
	// its own restrictions, for 30 seconds at most. If the exit code is not 0, the agent runs the command again after
	// growing delays. The command's output goes to the agent's standard error.
	Reload []string `yaml:"reload"`
	// The agent's log on standard error.
	Log logSettings `yaml:"log"`
}

// keySettings holds the properties of private keys.
type keySettings struct {
	// The type of keys: `P-256`, `P-384` or `Ed25519`. The certificate profile must allow the type.
	Type pki.KeyType `yaml:"type"`
	// The group whose members may read `key.pem`, in addition to the agent's own user: a name or a number. The agent's
	// user must be a member of the group. Without `key.group`, no other user may read the key. Every user may read the
	// certificates.
	Group string `yaml:"group"`
	// The mode of `key.pem`: `0600`, `0400`, `0640` or `0440`. The default is `0600`, or `0640` with `key.group`.
	Mode fileMode `yaml:"mode"`
	// The TPM 2.0 that the agent makes the keys in, such as `/dev/tpmrm0`. `key.pem` then contains a key that only this
	// TPM can use, which OpenSSL reads with the provider tpm2-openssl. The type is P-256. The agent's user needs access
	// to the device, on Debian as a member of the group `tss`. By default, the keys are in files.
	TPM string `yaml:"tpm"`
}

// fingerprint is the SHA-256 of a certificate. The zero value means that none is set.
type fingerprint [32]byte

// UnmarshalText parses hexadecimal digits.
func (f *fingerprint) UnmarshalText(text []byte) error {
	b, err := hex.DecodeString(strings.ReplaceAll(string(text), ":", ""))
	if err != nil || len(b) != len(f) {
		return fmt.Errorf("%.100q is not a fingerprint: use 64 hexadecimal digits, the SHA-256 of the root certificate", text)
	}
	copy(f[:], b)
	return nil
}

// String returns hexadecimal digits, or "" for zero.
func (f fingerprint) String() string {
	if f == (fingerprint{}) {
		return ""
	}
	return hex.EncodeToString(f[:])
}

// logSettings holds the properties of the log.
type logSettings struct {
	// The format of records: `text` or `json`.
	Format config.LogFormat `yaml:"format"`
	// The minimum level of records: `debug`, `info`, `warn` or `error`.
	Level config.LogLevel `yaml:"level"`
}

// ReplacedKeys implements [config.Replacer].
func (*settings) ReplacedKeys() map[string]string {
	return map[string]string{
		"directory": "state_dir", "key_type": "key.type", "key_group": "key.group", "key_mode": "key.mode", "log_format": "log.format",
	}
}

// environment describes the environment variables of the agent.
var environment = config.Environment{
	Prefix: "BREVET_AGENT_",
	Secrets: map[string]string{
		"TOKEN": "write the enrollment token to a file and set token_file",
		"JWT":   "write the JWT to a file and set jwt.file",
	},
}

// defaultSettings returns the configuration with the default of every key.
func defaultSettings() settings {
	return settings{Key: keySettings{Type: pki.P256}, Log: logSettings{Format: config.LogText}}
}

// loadSettings reads the configuration file, unless path is empty. Then it applies the environment variables, and then
// the flags. Each of them overrides the earlier values.
func loadSettings(path string, flags []config.Value) (settings, error) {
	s := defaultSettings()
	if path != "" {
		if err := config.Load(path, &s); err != nil {
			return s, err
		}
	}
	if err := environment.Check(s, os.Environ()); err != nil {
		return s, err
	}
	values := append(environment.Values(s, os.Getenv), flags...)
	if err := config.Override(&s, values); err != nil {
		return s, err
	}
	return s, config.Attribute(s.check(), path, values)
}

// check returns a [*config.Error] for the first invalid value.
func (s settings) check() error {
	fault := func(key, problem string) error { return &config.Error{Key: key, Problem: problem} }
	switch {
	case s.StateDir == "":
		return fault("state_dir", "name the directory that the credential is kept in, such as /var/lib/brevet-agent")
	case s.TokenFile == "-":
		return fault("token_file", "name a file: the agent reads the token again after a refusal; the enroll command reads one from standard input")
	case s.Lifetime < 0:
		return fault("lifetime", "a lifetime is positive; leave it out for the profile's default")
	case len(s.Reload) > 0 && s.Reload[0] == "":
		return fault("reload", "the first item names the command")
	}
	if err := enroll.CheckKeyType(s.Key.Type); err != nil {
		return fault("key.type", err.Error())
	}
	if s.Key.Mode != 0 {
		if err := enroll.CheckKeyMode(fs.FileMode(s.Key.Mode)); err != nil {
			return fault("key.mode", err.Error())
		}
	}
	if err := checkIdentity(s.Identity); err != nil {
		return fault("identity", err.Error())
	}
	if s.Server != "" {
		if err := enroll.CheckServer(s.Server); err != nil {
			return fault("server", err.Error())
		}
	}
	if s.Key.TPM != "" && s.Key.Type != pki.P256 {
		return fault("key.type", "keys in a TPM are of the type P-256")
	}
	if s.TrustDomain != "" {
		if _, err := pki.ParseTrustDomain(s.TrustDomain); err != nil {
			return fault("trust_domain", err.Error())
		}
	}
	return nil
}

// checkIdentity returns an error for a text that is neither empty nor the name of an identity.
func checkIdentity(text string) error {
	if text == "" {
		return nil
	}
	_, err := pki.ParseSPIFFEID(text)
	if !strings.HasPrefix(text, "spiffe:") {
		_, err = pki.SPIFFEIDIn("fleet.example", text) // the agent does not know its trust domain yet
	}
	if err != nil {
		return fmt.Errorf("%q is not the name of an identity: use a path such as sensor/S000017", text)
	}
	return nil
}

// fileMode is a file mode that is written in octal digits. 0 means that none is set.
type fileMode fs.FileMode

// UnmarshalText parses octal digits.
func (m *fileMode) UnmarshalText(text []byte) error {
	n, err := strconv.ParseUint(string(text), 8, 9)
	if err != nil {
		return fmt.Errorf("%q is not a file mode: use octal digits, such as 0640", text)
	}
	*m = fileMode(n)
	return nil
}

// String returns octal digits, or "" for 0.
func (m fileMode) String() string {
	if m == 0 {
		return ""
	}
	return fmt.Sprintf("%04o", uint32(m))
}

// shareKey sets the configured group and mode for the private key in the directory.
func (s settings) shareKey(dir *enroll.Directory) error {
	group, mode := 0, fs.FileMode(s.Key.Mode)
	if s.Key.Group != "" {
		id := s.Key.Group
		if found, err := user.LookupGroup(id); err == nil {
			id = found.Gid
		}
		var err error
		if group, err = strconv.Atoi(id); err != nil || group <= 0 {
			return misusef("key.group: there is no group %q: use the name of a group on this machine other than root's, or its number", s.Key.Group)
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
	return s.Log.Format.Logger(w, s.Log.Level)
}

// token reads the token file. It returns ErrNoToken if there is no usable token.
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
