import java.io.IOException;
import java.net.URI;
import java.net.URLEncoder;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.time.Instant;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * The application asks spid if a customer may use the service. Java 17 or newer, standard library only.
 *
 * <pre>
 * java Entitlement.java URL TOKEN-FILE INSTANCE
 * </pre>
 *
 * It prints a line whenever the answer changes. It waits for changes instead of asking again and again, and it survives
 * a restart of spid: while spid is away the last answer stands, until its term or the time for a late renewal is over.
 * An application with a JSON library reads the answer with it; four members are enough here.
 */
public final class Entitlement {
    private static final Duration WAIT = Duration.ofSeconds(30);

    private final HttpClient client = HttpClient.newBuilder().connectTimeout(Duration.ofSeconds(5)).build();
    private final String url;
    private final String token;
    private String tag;
    private String answer;

    Entitlement(String url, String token, String instance) {
        String name = URLEncoder.encode(instance, StandardCharsets.UTF_8).replace("+", "%20");
        this.url = url.replaceAll("/+$", "") + "/v1/entitlements/" + name;
        this.token = token;
    }

    /** A refusal: its status, and the sentence for people. */
    static final class Refused extends IOException {
        final int status;

        Refused(int status, String sentence) {
            super(sentence);
            this.status = status;
        }
    }

    /** Waits for another answer than the known one, for at most 30 s. Returns true if there is one. */
    boolean refresh() throws IOException, InterruptedException {
        String wait = tag == null ? "" : "?wait=" + WAIT.toSeconds() + "s";
        HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(url + wait))
                .timeout(WAIT.plusSeconds(10))
                .header("Authorization", "Bearer " + token);
        if (tag != null) {
            request.header("If-None-Match", tag);
        }
        HttpResponse<String> response = client.send(request.build(), HttpResponse.BodyHandlers.ofString());
        switch (response.statusCode()) {
            case 200 -> {
                tag = response.headers().firstValue("ETag").orElse(null);
                answer = response.body();
                return true;
            }
            case 304 -> {
                return false;
            }
            // 404: there is no such instance, which is not the same as "not entitled".
            default -> throw new Refused(response.statusCode(), text(response.body(), "error"));
        }
    }

    /** Decides by the last answer. Call it as often as you like: it asks nobody. */
    boolean isEntitled() {
        if (answer == null || !answer.contains("\"entitled\":true")) {
            return false;
        }
        // While spid is away, an answer is good until it would have changed.
        String until = text(answer, "grace_until");
        until = until == null ? text(answer, "expires_on") : until;
        return until == null || Instant.now().isBefore(Instant.parse(until));
    }

    String reason() {
        return text(answer, "reason");
    }

    /** Returns a text member of the answer, or null. */
    private static String text(String json, String name) {
        Matcher found = Pattern.compile("\"" + name + "\":\"((?:[^\"\\\\]|\\\\.)*)\"").matcher(json);
        return found.find() ? found.group(1) : null;
    }

    public static void main(String[] arguments) throws Exception {
        String token = Files.readString(Path.of(arguments[1])).strip();
        String instance = arguments[2];
        Entitlement entitlement = new Entitlement(arguments[0], token, instance);
        String told = null;
        while (true) {
            try {
                entitlement.refresh();
                String word = entitlement.isEntitled() ? "entitled" : "not entitled";
                String line = instance + ": " + word + " (" + entitlement.reason() + ")";
                // The answer also changes in members that are not shown here, for example when a callback arrives.
                if (!line.equals(told)) {
                    System.out.println(line);
                    System.out.flush();
                    told = line;
                }
            } catch (Refused refused) {
                System.err.println(instance + ": " + refused.getMessage());
                if (refused.status == 401 || refused.status == 403) {
                    System.exit(1);
                }
                Thread.sleep(5_000);
            } catch (IOException away) {
                // spid restarts: ask again soon. The last answer stands.
                Thread.sleep(200);
            }
        }
    }
}
