package agent

import (
	"cmp"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/brevet-pki/brevet/internal/agentcli"
	"github.com/brevet-pki/brevet/internal/config/configtest"
)

var update = flag.Bool("update", false, "write the reference of the configuration, where it is not current")

func TestReferenceIsCurrent(t *testing.T) {
	configtest.Reference(t, "configuration.md", "The agent: agent.yaml", configtest.Keys(t, defaultSettings()), "", *update)
}

func TestExampleLoads(t *testing.T) {
	keys := configtest.Keys(t, defaultSettings())
	example := configtest.ReadExample(t, "brevet-agent.example.yaml", defaultSettings(), keys)
	if _, err := loadSettings(example.Path(), nil); err != nil {
		t.Error(err)
	}
	for _, k := range keys {
		_, err := loadSettings(example.Without(t, k.Path), nil)
		if k.Required != (err != nil) || err != nil && !strings.Contains(err.Error(), ": "+k.Path+": ") {
			t.Errorf("without %s, which is required: %v, the error is %v", k.Path, k.Required, err)
		}
	}
}

func TestFingerprint(t *testing.T) {
	digits := strings.Repeat("ab", 32)
	for text, want := range map[string]string{digits: digits, "AB" + strings.Repeat(":AB", 31): digits, "ab": "", digits + "ab": "", "not hexadecimal": ""} {
		var f fingerprint
		if err := f.UnmarshalText([]byte(text)); f.String() != want || (err != nil) != (want == "") {
			t.Errorf("%s: got %s, %v, want %s", text, f, err, want)
		}
	}
}

// load loads a configuration, and checks it as the run command does.
func load(t *testing.T, text string) (settings, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "agent.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := loadSettings(file, nil)
	if err == nil {
		err = cmp.Or(s.checkEvidence(s.TokenFile != ""), s.checkServer(s.TokenFile != ""))
	}
	return s, err
}

func TestKindsOfEvidence(t *testing.T) {
	const server = "server: ca.fleet.example:7443\ntrust_domain: fleet.example\nroot_fingerprint: " +
		"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\n"
	const factory = "factory_certificate: {certificate: idevid.pem, key: idevid.key}\n"
	const jwt, token, tpm = "jwt: {file: token}\n", "token_file: token\n", "attestation: true\nkey: {tpm: /dev/tpmrm0}\n"
	for text, want := range map[string]string{ // the kinds, or a part of the error after "fault "
		token:                        "token_file",
		token + jwt:                  "token_file jwt",
		token + tpm + server:         "token_file attestation",
		server + factory:             "factory_certificate",
		server + factory + tpm:       "factory_certificate attestation",
		server + factory + jwt:       "factory_certificate jwt",
		server + tpm + jwt:           "attestation jwt",
		server:                       "",
		token + jwt + factory:        "fault jwt: a request has at most two kinds of evidence: remove one of token_file, factory_certificate, jwt",
		server + "jwt:\n  fil: x":    "fault jwt.fil: there is no such key; the nearest is file",
		"factory_certficate: {}":     "fault factory_certficate: there is no such key; the nearest is factory_certificate",
		server + "attestation: true": "fault key.tpm: name the TPM",
		server + "factory_certificate: {key: idevid.key}":         "fault factory_certificate: name two files",
		server + "factory_certificate: {certificate: idevid.pem}": "fault factory_certificate: name two files",
		jwt: "fault jwt: without a token, set server, trust_domain and root_fingerprint",
		strings.TrimPrefix(server, "server: ca.fleet.example:7443\n") + jwt:  "fault jwt: without a token, set server",
		"server: ca.fleet.example:7443\ntrust_domain: fleet.example\n" + jwt: "fault root_fingerprint: set both",
		"trust_domain: fleet example":                                        "fault trust_domain: ",
	} {
		s, err := load(t, "state_dir: /var/lib/brevet-agent\n"+text)
		says, isFault := strings.CutPrefix(want, "fault ")
		switch {
		case isFault && (err == nil || !strings.Contains(err.Error(), says)):
			t.Errorf("%s%v, want %q", text, err, says)
		case !isFault && (err != nil || strings.Join(s.kinds(s.TokenFile != ""), " ") != want):
			t.Errorf("%s%v, %v, want %s", text, s.kinds(s.TokenFile != ""), err, want)
		}
		if err == nil && (s.evidence(s.device()) == nil) != (want == "" || want == "token_file") {
			t.Errorf("%sthe agent has evidence besides a token: %v", text, s.evidence(s.device()) != nil)
		}
	}
}

func TestDocumentedConfigurationsLoad(t *testing.T) {
	pages, err := filepath.Glob("../../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, block := range regexp.MustCompile("(?s)\n```yaml agent.yaml\n(.*?)```\n").FindAllStringSubmatch(string(text), -1) {
			found++
			if _, err := load(t, block[1]); err != nil {
				t.Errorf("%s: %v in\n%s", page, err, block[1])
			}
		}
	}
	if found < 4 {
		t.Errorf("the documents have %d configurations of the agent", found)
	}
}

// pod is what the test of deploy/kubernetes/pod.yaml reads of a document in it.
type pod struct {
	Kind     string
	Metadata struct{ Name, Namespace string }
	Data     map[string]string
	Spec     struct {
		ServiceAccountName string `yaml:"serviceAccountName"`
		InitContainers     []struct {
			Args         []string
			StartupProbe struct{ Exec struct{ Command []string } } `yaml:"startupProbe"`
			VolumeMounts []struct {
				Name      string
				MountPath string `yaml:"mountPath"`
			} `yaml:"volumeMounts"`
		} `yaml:"initContainers"`
		Volumes []struct {
			Name      string
			ConfigMap struct{ Name string } `yaml:"configMap"`
			Projected struct {
				Sources []struct {
					ServiceAccountToken struct{ Path, Audience string } `yaml:"serviceAccountToken"`
				}
			}
		}
	}
}

// The example of a pod fits together: the agent's configuration, the mounted files, and the source in the documents.
func TestKubernetesExample(t *testing.T) {
	file, err := os.Open("../../../deploy/kubernetes/pod.yaml")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	documents := map[string]pod{}
	for d := yaml.NewDecoder(file); ; {
		var p pod
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		documents[p.Kind] = p
	}
	web, configMap, account := documents["Pod"], documents["ConfigMap"], documents["ServiceAccount"]
	if len(documents) != 3 || len(web.Spec.InitContainers) != 1 || web.Spec.ServiceAccountName != account.Metadata.Name {
		t.Fatalf("the example has %+v", documents)
	}
	set, err := load(t, configMap.Data["agent.yaml"])
	if err != nil {
		t.Fatal(err)
	}
	if got := set.kinds(false); !slices.Equal(got, []string{"jwt"}) {
		t.Errorf("the agent enrolls with %v", got)
	}
	agent := web.Spec.InitContainers[0]
	mounts := map[string]string{}
	for _, m := range agent.VolumeMounts {
		mounts[m.Name] = m.MountPath
	}
	audience := ""
	for _, v := range web.Spec.Volumes {
		if v.Name == "config" && v.ConfigMap.Name != configMap.Metadata.Name {
			t.Errorf("the pod mounts the ConfigMap %s", v.ConfigMap.Name)
		}
		for _, s := range v.Projected.Sources {
			audience = s.ServiceAccountToken.Audience
			if path := filepath.Join(mounts[v.Name], s.ServiceAccountToken.Path); path != set.JWT.File {
				t.Errorf("the token is in %s, and the agent reads %s", path, set.JWT.File)
			}
		}
	}
	if !strings.HasPrefix(set.StateDir, mounts["credential"]+"/") {
		t.Errorf("the credential is in %s, which is no directory below the volume at %s", set.StateDir, mounts["credential"])
	}
	page, err := os.ReadFile("../../../docs/evidence-jwt.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(page), "\n    audience: "+audience+"\n") {
		t.Errorf("the source in docs/evidence-jwt.md has another audience than %q", audience)
	}
	for _, args := range [][]string{agent.Args, agent.StartupProbe.Exec.Command[1:]} {
		set := agentFlags(t, args)
		if want := filepath.Join(mounts["config"], "agent.yaml"); set != want {
			t.Errorf("%v reads %s, want %s", args, set, want)
		}
	}
}

// agentFlags parses a command line of the agent, and returns its --config.
func agentFlags(t *testing.T, args []string) string {
	t.Helper()
	c, found := agentcli.Find(args[0])
	flags := c.FlagSet()
	if err := flags.Parse(args[1:]); err != nil || !found {
		t.Fatalf("%v: %v", args, err)
	}
	return value(flags, "config")
}
