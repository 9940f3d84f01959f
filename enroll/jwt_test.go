package enroll

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// jwtText returns an unsigned JWT with the claims. Only the server would notice.
func jwtText(claims string) string {
	encode := base64.RawURLEncoding.EncodeToString
	return encode([]byte(`{"alg":"EdDSA"}`)) + "." + encode([]byte(claims)) + "." + encode([]byte("signature"))
}

func testJWT(t testing.TB, claims string) JWT {
	t.Helper()
	j, err := ParseJWT([]byte(jwtText(claims)))
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func TestJWTClaims(t *testing.T) {
	web := testJWT(t, `{"iss":"cluster","sub":"web","exp":1900000000.5,"jti":"1"}`)
	if want := time.Unix(1900000000, 0); !web.ExpiresAt.Equal(want) {
		t.Errorf("it expires at %s, want %s", web.ExpiresAt, want)
	}
	if again := testJWT(t, `{"jti":"2","sub":"web","iss":"cluster"}`); again.Subject() != web.Subject() || !again.ExpiresAt.IsZero() {
		t.Errorf("another token of the workload has the subject %s, want %s", again.Subject(), web.Subject())
	}
	for _, claims := range []string{`{"iss":"cluster","sub":"db"}`, `{"iss":"other","sub":"web"}`, `{}`, `{"iss":"clusterw","sub":"eb"}`} {
		if other := testJWT(t, claims); other.Subject() == web.Subject() || strings.Contains(other.Subject(), "web") {
			t.Errorf("%s has the subject %s", claims, other.Subject())
		}
	}
	for _, exp := range []string{"-1", "0", "1e300"} {
		if j := testJWT(t, `{"exp":`+exp+`}`); !j.ExpiresAt.IsZero() {
			t.Errorf("exp %s is read as %s", exp, j.ExpiresAt)
		}
	}
}

// layJWT contains functions that create files which hold no JWT, with a part of the error of ReadJWT.
var layJWT = map[string]struct {
	lay  func(path string) error
	says string
}{
	"missing":                    {func(string) error { return nil }, "no such file"},
	"empty":                      {content(""), "it is empty"},
	"white space":                {content(" \n\n"), "it is empty"},
	"too large":                  {content(jwtText(`{"sub":"` + strings.Repeat("x", maxJWT) + `"}`)), "larger than"},
	"just too large":             {content(jwtText(`{"sub":"` + strings.Repeat("x", 12320) + `"}`)), "too large"},
	"a directory":                {func(path string) error { return os.Mkdir(path, 0o700) }, "not a regular file"},
	"a link to a directory":      {func(path string) error { return os.Symlink(filepath.Dir(path), path) }, "not a regular file"},
	"a FIFO":                     {func(path string) error { return syscall.Mkfifo(path, 0o600) }, "not a regular file"},
	"an enrollment token":        {content("brevet1.BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcH"), "it is not a JWT"},
	"two tokens":                 {content(jwtText("{}") + "\n" + jwtText("{}")), "it is not a JWT"},
	"a payload that is no JSON":  {content(jwtText("secret")), "it is not a JWT"},
	"a payload not in base64url": {content("secret.{}.secret"), "it is not a JWT"},
	"a subject that is no text":  {content(jwtText(`{"sub":["secret"]}`)), "it is not a JWT"},
	"an encrypted token":         {content(jwtText("{}") + ".secret.secret"), "it is not a JWT"},
}

func content(text string) func(string) error {
	return func(path string) error { return os.WriteFile(path, []byte(text), 0o600) }
}

func TestUnusableJWTFiles(t *testing.T) {
	for name, c := range layJWT {
		path := filepath.Join(t.TempDir(), "token")
		if err := c.lay(path); err != nil {
			t.Fatal(err)
		}
		_, err := ReadJWT(path)
		if err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v, want an error that contains %q and the path, and not the token", name, err, c.says)
		}
	}
}

// The kubelet replaces a projected token by renaming a symbolic link to its directory.
func TestProjectedTokenIsReadAgain(t *testing.T) {
	dir := t.TempDir()
	path, data := filepath.Join(dir, "token"), filepath.Join(dir, "..data")
	if err := os.Symlink(filepath.Join("..data", "token"), path); err != nil {
		t.Fatal(err)
	}
	for _, version := range []string{"1", "2"} {
		at := filepath.Join(dir, "..v"+version)
		if err := os.Mkdir(at, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(at, "token"), []byte("\n"+jwtText(`{"jti":"`+version+`"}`)+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("..v"+version, data+".new"); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(data+".new", data); err != nil {
			t.Fatal(err)
		}
		j, err := ReadJWT(path)
		if err != nil {
			t.Fatal(err)
		}
		if e, err := j.Present(t.Context(), Presentation{}); err != nil || string(e.Value) != jwtText(`{"jti":"`+version+`"}`) {
			t.Errorf("version %s: %v, %s", version, err, e.Value)
		}
	}
}

func TestJWTHidesItself(t *testing.T) {
	j := testJWT(t, `{"sub":"web"}`)
	var logged strings.Builder
	slog.New(slog.NewTextHandler(&logged, nil)).Info("x", "token", j)
	slog.New(slog.NewJSONHandler(&logged, nil)).Info("x", "token", j)
	encoded, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	shown := []string{logged.String(), string(encoded)}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		shown = append(shown, fmt.Sprintf(verb, j), fmt.Sprintf(verb, EnrollRequest{Evidence: []Evidence{j}}))
	}
	text := jwtText(`{"sub":"web"}`)
	for _, s := range shown {
		if strings.Contains(s, text[:20]) || strings.Contains(s, fmt.Sprintf("%x", text[:8])) || strings.Contains(s, fmt.Sprintf("%d", []byte(text[:4]))[1:8]) {
			t.Errorf("%s contains the token", s)
		}
	}
}

func FuzzParseJWT(f *testing.F) {
	for _, seed := range []string{jwtText(`{"iss":"a","sub":"b","exp":1}`), " " + jwtText("{}") + "\n", "..", "a.b.c", "", strings.Repeat(".", maxJWT+1)} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		j, err := ParseJWT(text)
		if err != nil {
			if len(text) > 60 && strings.Contains(err.Error(), string(text[20:60])) {
				t.Fatalf("the error contains the token: %v", err)
			}
			return
		}
		if e, err := j.Present(t.Context(), Presentation{}); err != nil || len(e.Value) > maxJWT || !strings.Contains(string(text), string(e.Value)) {
			t.Fatalf("%q is presented as %q, %v", text, e.Value, err)
		}
	})
}
