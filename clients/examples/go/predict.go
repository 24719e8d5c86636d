// What digit is on a picture, over HTTP: go run predict.go URL PICTURE
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"os"
	"strings"
	"time"
)

// The fields of an answer that are shown here; docs/api.md lists all of them.
type answer struct {
	Error       string
	Predictions []struct {
		Digit         int
		Probabilities []float64
		Accepted      bool
		Hint          string
	}
}

func main() {
	log.SetFlags(0)
	url, picture := os.Args[1], os.Args[2]
	body, err := os.ReadFile(picture)
	if err != nil {
		log.Fatal(err)
	}
	client := http.Client{Timeout: 10 * time.Second}
	// Or another type of picture: the server looks at the bytes.
	response, err := client.Post(url+"/predict", "image/png", bytes.NewReader(body))
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	var found answer
	if err := json.NewDecoder(response.Body).Decode(&found); err != nil {
		log.Fatalf("%s: %v", response.Status, err)
	}
	if response.StatusCode != http.StatusOK {
		log.Fatal(found.Error)
	}
	for _, one := range found.Predictions {
		line := fmt.Sprintf("digit %d, probability %.4f, accepted %t %s", one.Digit, one.Probabilities[one.Digit], one.Accepted, one.Hint)
		fmt.Println(strings.TrimSpace(line))
	}
}
